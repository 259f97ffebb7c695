"""Finished images of blocks that are not complete, so that a killed worker costs a batch, not a block.

A block of a packed or large sweep is many batches. What is made of one is kept here until the block is committed; when its
worker is killed, the next one that takes the shard finds it. Nothing depends on it: what is lost here is made again, and who
keeps the same batch twice keeps the same images.

It lies in the machine's temporary folder, not in the sweep's, as a file for each batch is what blocks are there to spare a
shared file system; `paths.spool` may name a place that outlives the machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sdbatch.errors import FolderError
from sdbatch.results.block import rows_in
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import Row
from sdbatch.results.schema import OK
from sdbatch.results.tar_shard import write_tar_shard

log = logging.getLogger(__name__)

Place = tuple[int, int]
"""Shard and block."""


class Spool:
    """What the workers of a sweep have made and not committed, a folder for each shard."""

    def __init__(self, folder: SweepFolder, above: Path | None = None) -> None:
        """`above`: where it lies; None: where the system keeps what need not last."""
        self._user = (above or Path(tempfile.gettempdir())) / f"sdbatch-{os.getuid()}"
        self._home = self._user / hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
        self._is_usable = self._is_ours()

    def keep(self, place: Place, rows: Sequence[Row], images: Mapping[str, bytes]) -> None:
        """Keep a batch of a block: the good of its rows with their `images` by path."""
        good = [row for row in rows if row["status"] == OK]
        if not good or not self._is_usable:
            return
        final = self._shard(place[0]) / f"{place[1]}-{good[0]['image_id']}.tar"
        partial = final.with_suffix(f".{os.getpid()}")
        try:
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("wb") as file:
                write_tar_shard(file, ((row, images[row["image"]]) for row in good))
            partial.rename(final)
        except OSError as error:
            self._tell(str(error))
            self._is_usable = False

    def drop(self, place: Place) -> None:
        """The block is committed."""
        with suppress(OSError):
            for path in self._shard(place[0]).glob(f"{place[1]}-*"):
                path.unlink(missing_ok=True)
            self._shard(place[0]).rmdir()  # refused while there is more

    def take(self, shard: int, image_ids: Collection[str]) -> Iterator[tuple[Row, bytes]]:
        """Of these images the ones that are kept here, whole."""
        for path in sorted(self._shard(shard).glob("*.tar")) if self._is_usable else ():
            with suppress(FolderError, OSError):
                rows = rows_in(path)
                with path.open("rb") as file:
                    for row in rows:
                        data = os.pread(file.fileno(), row["image_bytes"], row["image_offset"])
                        if row["image_id"] in image_ids and hashlib.sha256(data).hexdigest() == row["image_sha256"]:
                            yield row | {"image_offset": None}, data

    def clear(self) -> None:
        """The sweep is finished: what workers left that were killed goes."""
        shutil.rmtree(self._home, ignore_errors=True)

    def _shard(self, shard: int) -> Path:
        return self._home / str(shard)

    def _is_ours(self) -> bool:
        """Whether the user's folder of a place that all users share is theirs alone."""
        try:
            self._user.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._user.lstat()
        except OSError as error:
            self._tell(str(error))
            return False
        is_ours = found.st_uid == os.getuid() and not found.st_mode & 0o077  # nor a link, whose mode is 777
        if not is_ours:
            self._tell("others may write there")
        return is_ours

    def _tell(self, reason: str) -> None:
        log.warning("%s: what is made of a block is not kept until it is committed: %s", self._user, reason)
