"""Who works on which shard: one small file per shard, made atomically, so that any number of workers share a plan.

A claim only saves double work. What is made twice is committed once, by the results layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdbatch.results.disk import explained, write_file


class Claims:
    """The claims of a sweep folder, as one worker sees them."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    def _open(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}"

    def _done(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.done"

    def take(self, shard: int) -> bool:
        """Claim a shard. False when it is taken or finished."""
        if self._done(shard).exists():
            return False
        with explained("cannot claim work in", self.folder):
            try:
                handle = os.open(self._open(shard), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(handle, "w") as file:
                file.write(self.worker)
        return True

    def finish(self, shard: int) -> None:
        """All cells of the shard are committed."""
        with explained("cannot finish work in", self.folder):
            self._open(shard).replace(self._done(shard))

    def drop(self, shard: int) -> None:
        """Give a shard back unfinished."""
        self._open(shard).unlink(missing_ok=True)

    def drop_all(self, worker: str) -> list[int]:
        """Give back every shard of a dead worker."""
        dropped: list[int] = []
        for path in self.folder.iterdir():
            if path.name.isdigit() and _owner(path) == worker:
                path.unlink(missing_ok=True)
                dropped.append(int(path.name))
        return dropped

    def iter_open(self, shards: int, index: int, workers: int) -> Iterator[int]:
        """Shards to try: this worker's own stride first, then the others' in the same order."""
        own = range(index, shards, workers)
        yield from own
        yield from (shard for shard in range(shards) if shard % workers != index)


def _owner(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Crashes:
    """How often each cell was being made when its worker died. Written by the supervisor, read by workers."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "crashes.json"

    def read(self) -> dict[str, int]:
        """Image id -> crashes."""
        try:
            return dict[str, int](json.loads(self.path.read_text()))
        except FileNotFoundError:
            return {}

    def add(self, image_ids: list[str]) -> dict[str, int]:
        """Count one more crash for each of these cells."""
        counts = self.read()
        for image_id in image_ids:
            counts[image_id] = counts.get(image_id, 0) + 1
        write_file(self.path, json.dumps(counts).encode())
        return counts


def clear(folder: Path) -> None:
    """Start with no claims. Only the driver that holds the folder's lock may do this."""
    with explained("cannot write in", folder):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove the claims of a sweep that ended."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
