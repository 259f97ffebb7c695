"""Encoding and committing on a thread of its own, so that they overlap the denoising of the next batch."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sdbatch.cell import Cell, Picture
from sdbatch.results.block import PACKINGS
from sdbatch.results.commit import commit_block, commit_packed, write_images
from sdbatch.results.folder import SweepFolder
from sdbatch.results.png import png_of
from sdbatch.results.row import ImageFile, Origin, Row, failed_row, row_of
from sdbatch.results.schema import NAN, OK
from sdbatch.results.spool import Spool


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
class Output:
    """How a sweep's images are written."""

    room: int
    """Images that the folder is to hold."""
    format: str = "files"
    """`files`, or one of `sdbatch.results.block.PACKINGS`."""


@dataclass(frozen=True, slots=True)
class _Batch:
    place: tuple[int, int]
    """Shard and block."""
    outcomes: tuple[Outcome, ...]
    attempts: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Images of a block that were made before, as rows and PNGs."""

    place: tuple[int, int]
    images: Sequence[tuple[Row, bytes]]


@dataclass(slots=True)
class _Open:
    """A block of which some batches are encoded and none is committed."""

    rows: list[Row] = field(default_factory=list[Row])
    images: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """PNGs by their path in the folder."""


class BlockWriter:
    """Encodes batches as they are put and commits them a block at a time, behind the caller's back.

    An error stops all further commits and is raised by every later call, so none is lost. As a context manager it
    commits what is queued before it leaves, whatever made it leave.
    """

    def __init__(
        self,
        folder: SweepFolder,
        origin: Origin,
        output: Output,
        on_commit: Callable[[list[Row]], None] | None = None,
        depth: int = 2,
        spool: Spool | None = None,
    ) -> None:
        """`on_commit` gets the rows of each committed block, on the writer's thread; `depth` is how many batches may wait;
        `spool` keeps the batches of a block until it is committed."""
        self._folder = folder
        self._origin = origin
        self._output = output
        self._on_commit = on_commit
        self._spool = spool
        self._open: dict[tuple[int, int], _Open] = {}
        self._error: BaseException | None = None
        self._queue: queue.Queue[_Batch | _Found | threading.Event | None] = queue.Queue(maxsize=depth)
        # A daemon: a main thread that dies without closing must not hang the process.
        self._thread = threading.Thread(target=self._run, name="sdbatch-writer", daemon=True)
        self._thread.start()

    def put(self, place: tuple[int, int], outcomes: Sequence[Outcome], attempts: int = 1, is_last: bool = True) -> None:
        """Add these outcomes to the block `place` (shard, block), and commit it with its last batch.

        Returns at once unless `depth` batches are waiting.
        """
        self._raise()
        self._queue.put(_Batch(place, tuple(outcomes), attempts, is_last))

    def restore(self, place: tuple[int, int], images: Sequence[tuple[Row, bytes]]) -> None:
        """Add images that were made before, as their rows and PNGs, to the block `place`. It is committed with its last batch."""
        self._raise()
        self._queue.put(_Found(place, images))

    def flush(self) -> None:
        """Commit all that was put, also blocks that are not complete, and wait for it."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()
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
        while True:
            batch = self._queue.get()
            try:
                # After an error the queue is only emptied: a later block must not look as if all went well.
                if self._error is None:
                    self._take(batch)
            except BaseException as error:
                self._error = error
            if isinstance(batch, threading.Event):
                batch.set()
            if batch is None:
                return

    def _take(self, item: _Batch | _Found | threading.Event | None) -> None:
        match item:
            case _Batch(place, outcomes, attempts, is_last):
                rows, images = record(self._folder, self._origin, outcomes, self._output.room, attempts, place[0])
                self._add(place, rows, images)
                if is_last:
                    self._commit(place)
                elif self._spool:
                    self._spool.keep(place, rows, images)
            case _Found(place, found):
                paths = [self._folder.image_path(row["image_id"], self._output.room, place[0]) for row, _ in found]
                rows = [row | {"image": path} for path, (row, _) in zip(paths, found, strict=True)]
                self._add(place, rows, {path: data for path, (_, data) in zip(paths, found, strict=True)})
            case _:
                for place in list(self._open):
                    self._commit(place)

    def _add(self, place: tuple[int, int], rows: Sequence[Row], images: Mapping[str, bytes]) -> None:
        block = self._open.setdefault(place, _Open())
        block.rows += rows
        block.images |= images

    def _commit(self, place: tuple[int, int]) -> None:
        block = self._open.pop(place)
        if not block.rows:
            return
        rows = block.rows
        packing = PACKINGS.get(self._output.format)
        if packing is None:
            commit_block(self._folder, place, rows, block.images, self._output.room)
        else:
            # A block is a dataset: what is no success stays a file, for people to look at.
            good = {row["image_id"]: block.images.pop(row["image"]) for row in rows if row["status"] == OK}
            write_images(self._folder, block.images)
            rows = commit_packed(self._folder, place, rows, good, packing, self._output.room)
        if self._spool:
            self._spool.drop(place)
        if self._on_commit:
            self._on_commit(rows)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def record(
    folder: SweepFolder, origin: Origin, outcomes: Sequence[Outcome], room: int, attempts: int = 1, shard: int = 0
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
            image = ImageFile(folder.image_path(outcome.cell.image_id, room, shard), len(data), hashlib.sha256(data).hexdigest())
            images[image.path] = data
        rows.append(row_of(outcome, image, origin, attempts))
    return rows, images
