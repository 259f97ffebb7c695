"""Finished images of blocks that are not complete, on this machine's own disk, so that a killed worker costs a batch, not a block.

A block of a packed or large sweep is many batches. What a worker has made of one is kept here until the block is committed;
when the worker is killed, the next one on this machine that takes its shard finds it. Nothing depends on it: what is lost
here is made again. It lies beside the folder, not in it, as a file for each batch is what blocks are there to spare a shared one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sdbatch.errors import FolderError
from sdbatch.results.block import rows_in
from sdbatch.results.disk import Process, is_alive
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import Row
from sdbatch.results.schema import OK
from sdbatch.results.tar_shard import write_tar_shard

log = logging.getLogger(__name__)

Place = tuple[int, int]
"""Shard and block."""


class Spool:
    """What the workers of a sweep on this machine have made and not committed, a folder for each worker.

    A worker may read what the dead have left, and writes to its own folder alone.
    """

    def __init__(self, folder: SweepFolder, temporary: Path | None = None) -> None:
        """`temporary` is where the system keeps what need not last, unless it is given."""
        process = Process.own()
        sweep = hashlib.sha256(f"{process.machine} {folder.path.resolve()}".encode()).hexdigest()[:16]
        self._user = (temporary or Path(tempfile.gettempdir())) / f"sdbatch-{os.getuid()}"
        self._home = self._user / sweep
        self._own = self._home / f"{process.pid}-{process.start}"
        self._files: dict[Place, list[Path]] = {}
        self._left: dict[str, tuple[Path, Row]] = {}
        """By image id, what the dead have left and where its bytes lie."""
        self._read: set[str] = set()
        self._is_usable = self._is_ours()

    def keep(self, place: Place, rows: Sequence[Row], images: Mapping[str, bytes]) -> None:
        """Keep a batch of a block: the good of its rows with their `images` by path."""
        good = [row for row in rows if row["status"] == OK]
        if not good or not self._is_usable:
            return
        final = self._own / f"{place[0]}-{place[1]}-{good[0]['image_id']}.tar"
        partial = final.with_suffix(".part")
        try:
            self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("wb") as file:
                write_tar_shard(file, ((row, images[row["image"]]) for row in good))
            partial.rename(final)
        except OSError as error:
            log.warning("%s: what is made of a block is not kept until it is committed: %s", self._own, error)
            self._is_usable = False
            return
        self._files.setdefault(place, []).append(final)

    def drop(self, place: Place) -> None:
        """The block is committed."""
        for path in self._files.pop(place, ()):
            with suppress(OSError):
                path.unlink()

    def take(self, image_ids: Iterable[str]) -> Iterator[tuple[Row, bytes]]:
        """Of these images the ones that the dead have left, whole."""
        self._read_left()
        for image_id in image_ids:
            if image_id not in self._left:
                continue
            path, row = self._left.pop(image_id)
            with suppress(OSError), path.open("rb") as file:
                data = os.pread(file.fileno(), row["image_bytes"], row["image_offset"])
                if hashlib.sha256(data).hexdigest() == row["image_sha256"]:
                    yield row | {"image_offset": None}, data

    def close(self, *, is_finished: bool) -> None:
        """Give up the own folder, as all is committed; with the sweep finished also what the dead have left."""
        shutil.rmtree(self._own, ignore_errors=True)
        if is_finished:
            for dead in self._dead():
                shutil.rmtree(dead, ignore_errors=True)
            with suppress(OSError):  # another worker's folder may be in it
                self._home.rmdir()

    def _is_ours(self) -> bool:
        """Whether the user's folder of a place that all users share is theirs alone."""
        try:
            self._user.mkdir(mode=0o700, exist_ok=True)
            found = self._user.lstat()
        except OSError:
            return False
        return found.st_uid == os.getuid() and not found.st_mode & 0o077  # nor a link, whose mode is 777

    def _dead(self) -> Iterator[Path]:
        """The folders of workers that do not run any more."""
        try:
            folders = sorted(self._home.iterdir())
        except OSError:
            return
        for folder in folders:
            pid, _, start = folder.name.partition("-")
            if pid.isdecimal() and not is_alive(int(pid), start):
                yield folder

    def _read_left(self) -> None:
        for folder in self._dead() if self._is_usable else ():
            if folder.name in self._read:
                continue
            self._read.add(folder.name)
            for path in sorted(folder.glob("*.tar")):
                with suppress(FolderError):
                    self._left |= {row["image_id"]: (path, row) for row in rows_in(path)}
