"""Encoding and committing on a thread of its own, so that they overlap the next batch."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sdbatch.cell import Cell, Picture
from sdbatch.results.commit import commit_block
from sdbatch.results.folder import SweepFolder
from sdbatch.results.png import png_of
from sdbatch.results.row import ImageFile, Origin, Row, failed_row, row_of
from sdbatch.results.schema import NAN


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that could not be made."""

    cell: Cell
    error: str
    """The reason, as a user reads it."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is known of the attempt, such as `device`; as `Picture.facts`."""


Outcome = Picture | Failure


@dataclass(frozen=True, slots=True)
class _Block:
    shard: int
    outcomes: tuple[Outcome, ...]
    attempts: int


class BlockWriter:
    """Commits blocks in the order they are put, one at a time, behind the caller's back.

    An error stops all further commits and is raised by every later call, so none is lost. As a context manager it
    commits what is queued before it leaves, whatever made it leave.
    """

    def __init__(
        self,
        folder: SweepFolder,
        origin: Origin,
        plan_size: int,
        on_commit: Callable[[list[Row]], None] | None = None,
        depth: int = 2,
    ) -> None:
        """`on_commit` gets the rows of each committed block, on the writer's thread; `depth` is how many blocks may wait."""
        self._folder = folder
        self._origin = origin
        self._plan_size = plan_size
        self._on_commit = on_commit
        self._next: dict[int, int] = {}
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Block | None] = queue.Queue(maxsize=depth)
        # A daemon: a main thread that dies without closing must not hang the process.
        self._thread = threading.Thread(target=self._run, name="sdbatch-writer", daemon=True)
        self._thread.start()

    def put(self, shard: int, outcomes: Sequence[Outcome], attempts: int = 1) -> None:
        """Commit these outcomes as one block; returns at once unless `depth` blocks are waiting."""
        self._raise()
        self._queue.put(_Block(shard, tuple(outcomes), attempts))

    def flush(self) -> None:
        """Wait until all that was put is committed."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """Commit what is queued and end the thread. Closing twice does nothing more."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except BaseException as own:
            if error is None:
                raise
            error.add_note(f"The writer also failed: {own}")

    def _run(self) -> None:
        while (block := self._queue.get()) is not None:
            try:
                # After an error the queue is only emptied: a later block must not look as if all went well.
                if self._error is None:
                    self._commit(block)
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _commit(self, block: _Block) -> None:
        rows, images = record(self._folder, self._origin, block.outcomes, self._plan_size, block.attempts)
        number = self._next.get(block.shard)
        if number is None:
            number = self._folder.next_block(block.shard)
        commit_block(self._folder, (block.shard, number), rows, images)
        self._next[block.shard] = number + 1
        if self._on_commit:
            self._on_commit(rows)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def record(
    folder: SweepFolder, origin: Origin, outcomes: Sequence[Outcome], plan_size: int, attempts: int = 1
) -> tuple[list[Row], dict[str, bytes]]:
    """The rows of some outcomes and the PNGs to save with them, by their path in the folder."""
    rows: list[Row] = []
    images: dict[str, bytes] = {}
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            rows.append(failed_row(outcome.cell, outcome.error, origin, attempts, outcome.facts))
            continue
        image = None
        # A flat image is kept, since a user may have asked for one; pixels that are not numbers say nothing.
        if outcome.fault != NAN:
            data = png_of(outcome.cell, outcome.pixels, outcome.facts.get("autov3"))
            image = ImageFile(folder.image_path(outcome.cell.image_id, plan_size), len(data), hashlib.sha256(data).hexdigest())
            images[image.path] = data
        rows.append(row_of(outcome, image, origin, attempts))
    return rows, images
