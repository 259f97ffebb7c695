"""One worker: claim a shard, make what is missing of it block by block, commit, until no work is left.

Knows nothing of who started it. All state is in the sweep folder; messages on standard output are for whoever watches.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from sdbatch.cell import Cell
from sdbatch.errors import DeviceError, FolderError, SdbatchError
from sdbatch.pipeline.build import build_engine
from sdbatch.pipeline.engine import Engine
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import Origin, Row
from sdbatch.results.spool import Spool
from sdbatch.results.writer import BlockWriter, Failure, Output
from sdbatch.run.attempt import Attempt, Started, describe, is_sticky
from sdbatch.run.batch import Batch, batch_size_name, block_cells, cut_blocks
from sdbatch.run.claim import Claims
from sdbatch.run.crash import Crash, Crashes
from sdbatch.run.device import Place
from sdbatch.run.handover import Handover
from sdbatch.run.lease import signature_of
from sdbatch.run.message import Broken, Committed, Idle, Leaving, Making, Refused, Reporter, Step, Watching
from sdbatch.run.pulse import Pulse
from sdbatch.run.roster import is_finished
from sdbatch.run.settings import Settings
from sdbatch.run.shard import OpenShards, shard_done
from sdbatch.run.share import Share
from sdbatch.run.stop import Stop, Stopped
from sdbatch.run.unchanged import Unchanged

log = logging.getLogger(__name__)

POISON_CRASHES = 3
"""A cell that was alone in its batch at the last of this many crashes is failed; the others go on."""
ISOLATE_CRASHES = 2
"""After this many crashes the cells of a batch are made one by one, to find the one that kills."""


@dataclass
class Worker:
    """The state of one worker process."""

    folder: SweepFolder
    place: Place
    reporter: Reporter = field(default_factory=Reporter)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.planned = signature_of(self.folder.plan.stat())
        self.plan = PlanFile(self.folder.plan)
        self.about = self.folder.read_about()
        self.settings = Settings.from_dict(self.about["settings"])
        self.claims = Claims(self.folder.claims, self.place.name)
        self.crashes = Crashes(self.folder.claims)
        self.done: set[str] = set()
        """Of the shard in work: ids that were committed before."""
        self.open = OpenShards()
        self.waiting: Handover | None = None
        self.engines: dict[str, Engine] = {}
        self.unchanged = Unchanged()
        self.pulse = Pulse(self.reporter)
        self.spool = Spool(self.folder, Path(self.settings.spool) if self.settings.spool else None)

    def run(self) -> int:
        """Work until nothing is left or a stop is asked for. Returns the exit code."""
        origin = Origin(self.settings.name, self.place.name)
        try:
            output = Output(self.plan.room, self.settings.format)
            with self.pulse.beating(), BlockWriter(self.folder, origin, output, self._report, spool=self.spool) as writer:
                self._work(writer)
        except Stopped:
            return self.stop.exit_code
        except FolderError as error:
            self.reporter.send(Refused(str(error)))
            return 1
        except DeviceError as error:
            self.reporter.send(Broken(str(error), is_final=True))
            return 1
        except Exception as error:
            self.reporter.send(Broken(describe(error)))
            raise
        if is_finished(self.folder):
            self.spool.clear()
        self.reporter.send(Idle())
        return 0

    def _report(self, rows: list[Row]) -> None:
        good = [row["image_id"] for row in rows if row["status"] == "ok"]
        image_ids = [row["image_id"] for row in rows]
        self.reporter.send(Committed(len(good), len(rows) - len(good), image_ids))
        for shard in self.open.close(image_ids):
            self.claims.finish(shard)

    def _work(self, writer: BlockWriter) -> None:
        """Shard after shard. The last block of one is decoded and committed while the first of the next is denoised."""
        share = Share(self.claims, self.plan.shard_recipes().tolist(), self.place.index, self.place.workers)

        def pause(seconds: float) -> None:
            self._settle(writer)
            writer.flush()
            self.reporter.send(Watching())
            with self.pulse.busy():
                self.stop.wait(seconds)
            if signature_of(self.folder.plan.stat()) != self.planned:
                raise Stopped  # the sweep has ended meanwhile, and another begun: these are not the shards of this plan

        try:
            with self.claims.beating():
                for shard in share.iter_claimed(pause):
                    self.stop.check()
                    self._make_shard(shard, writer)
        finally:
            # Also when a stop was asked for: what is denoised is not thrown away.
            if self.stop.signal_number:
                self.reporter.send(Leaving())
            self._settle(writer)
            writer.flush()
            for shard in self.open.shards():
                self.claims.drop(shard)

    def _make_shard(self, shard: int, writer: BlockWriter) -> None:
        cells = self.plan.shard(shard)
        self.done = shard_done(self.folder, shard)
        missing = [cell.image_id for cell in cells if cell.image_id not in self.done]
        if not missing:
            self.claims.finish(shard)
            return
        self.open.begin(shard, missing)
        try:
            engine = self._engine(cells[0])
        except Exception as error:
            if is_sticky(error) or isinstance(error, DeviceError):
                raise
            # These weights cannot be used: their cells fail with the reason, other recipes go on.
            if not isinstance(error, SdbatchError):
                log.exception("weights could not be loaded")
            writer.put((shard, 0), [Failure(cell, describe(error)) for cell in cells if cell.image_id not in self.done])
            return
        self._make_batches(shard, self._todo(shard, cells, self._batch_size(engine, cells[0]), writer), engine, writer)

    def _todo(self, shard: int, cells: list[Cell], batch_size: int, writer: BlockWriter) -> list[Batch]:
        """What is to be made of a shard; what a killed worker had made of its open block is handed over instead."""
        least = block_cells(self.plan.cells, self.settings.format)
        todo = cut_blocks(cells, batch_size, least, self.done)
        missing = {cell.image_id for cell in cells if cell.image_id not in self.done}
        found = {row["image_id"]: (row, data) for row, data in self.spool.take(shard, missing)}
        if not found:
            return todo
        for batch in todo:
            if images := [found[cell.image_id] for cell in batch.cells if cell.image_id in found]:
                writer.restore((shard, batch.block), images)
        self.done |= found.keys()
        left = cut_blocks(cells, batch_size, least, self.done)
        for block in sorted({batch.block for batch in todo} - {batch.block for batch in left}):
            writer.put((shard, block), ())
        return left

    def _make_batches(self, shard: int, todo: list[Batch], engine: Engine, writer: BlockWriter) -> None:
        """Denoise batch after batch; decoding and committing one overlaps denoising the next."""
        attempt = Attempt(engine, self._on_step, self.settings.on_oom)
        crashes = self.crashes.read()
        # Who dies is blamed for what is not committed: where that happened, every batch is committed at once.
        is_hazardous = any(cell.image_id in crashes for batch in todo for cell in batch.cells)
        for batch in todo:
            self.stop.check()
            if not self.claims.holds(shard):
                # Another took this worker for dead; it makes the rest.
                self.open.forget(shard)
                return
            place = (shard, batch.block)
            worst = max(crashes.get(cell.image_id, Crash()).times for cell in batch.cells)
            if worst >= ISOLATE_CRASHES:
                self._settle(writer)
                self._make_alone(place, batch.cells, crashes, attempt, writer)
                continue
            self._tell_making(shard, batch.cells)
            started = self._start(attempt, batch.cells)
            self._settle(writer)
            self.waiting = Handover(place, attempt, started, worst + 1, self.done, batch.is_last or is_hazardous)
            if self.place.device == "cpu":
                self._settle(writer)  # it is decoded already
            else:
                self.waiting.begin(writer)

    def _make_alone(
        self, place: tuple[int, int], cells: list[Cell], crashes: dict[str, Crash], attempt: Attempt, writer: BlockWriter
    ) -> None:
        """The cells of a batch that kills workers, one at a time, so that only the one to blame is failed."""
        for cell in cells:
            if cell.image_id in self.done:
                continue
            crash = crashes.get(cell.image_id, Crash())
            if crash.times >= POISON_CRASHES:
                error = f"its worker died {crash.times} times while making it, the last time alone in its batch: {crash.cause}"
                writer.put(place, [Failure(cell, error)], crash.times)
                continue
            self._tell_making(place[0], [cell])
            self.waiting = Handover(place, attempt, self._start(attempt, [cell]), crash.times + 1, self.done, is_last=True)
            self._settle(writer)
            writer.flush()

    def _settle(self, writer: BlockWriter) -> None:
        """See to it that the batch before is with the writer."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.finish(writer, self.pulse)

    def _engine(self, cell: Cell) -> Engine:
        """The engine with the cell's recipe in memory. Raises SdbatchError."""
        recipe = cell.recipe
        if recipe.engine not in self.engines:
            with self.pulse.loading(recipe.engine):
                self.engines[recipe.engine] = build_engine(recipe.engine, self.place.device, self.place.threads)
        engine = self.engines[recipe.engine]
        with self.pulse.loading(", ".join([recipe.checkpoint.name, *(lora.name for lora in recipe.loras)])):
            self.unchanged.check(recipe)
            engine.prepare(recipe)
            self.unchanged.check(recipe)  # a file may be replaced while it is read
        return engine

    def _batch_size(self, engine: Engine, cell: Cell) -> int:
        """The sweep's batch size. The first worker to ask an engine settles it for all, so that a resume makes equal bytes."""
        if self.settings.batch_size is not None:
            return self.settings.batch_size
        name = batch_size_name(cell)
        return self.folder.read_settled(name) or self.folder.settle(name, engine.auto_batch_size(cell))

    def _start(self, attempt: Attempt, cells: list[Cell]) -> Started:
        with self.pulse.busy():
            return attempt.start(cells)

    def _tell_making(self, shard: int, cells: list[Cell]) -> None:
        self.reporter.send(Making(shard, [cell.image_id for cell in cells], sum(cell.width * cell.height for cell in cells)))

    def _on_step(self, done: int, total: int) -> None:
        self.reporter.send(Step(done, total))
        self.stop.at_step(done, total, time.monotonic())
