"""Checking every row of a sweep against its image, and taking back what does not hold."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdbatch.results.block import ImageReader, container_of, size_if_whole
from sdbatch.results.disk import TEMPORARY
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import iter_rows
from sdbatch.results.stray import list_temporary
from sdbatch.results.upkeep import drop_rows

_SIZE = ("image_width", "image_height")
_DENOISED = ("width", "height")
"""Their size, as rows of before there were upscalers have it."""
_COLUMNS = ("image_id", "image", "image_bytes", "image_offset", "image_sha256", *_SIZE, *_DENOISED)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check of a sweep folder found."""

    checked: int = 0
    """Rows whose image was looked at."""
    missing: dict[str, str] = field(default_factory=dict[str, str])
    """Ids whose image is gone, with its path in the folder."""
    corrupt: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Ids whose image is not what was saved, with its path in the folder and the reason."""
    unreadable: dict[Path, str] = field(default_factory=dict[Path, str])
    """Parts that cannot be read, with the reason."""
    orphans: tuple[str, ...] = ()
    """PNGs, and blocks of them, that no row knows: left by a crash, made over when their cells are run again."""
    temporary: tuple[str, ...] = ()
    """Files in the making: of workers that live, or left by the dead."""
    foreign: tuple[str, ...] = ()
    """Other files in the folders of images, blocks and rows; never touched."""

    @property
    def is_sound(self) -> bool:
        """Whether every row holds. Orphans and foreign files do no harm."""
        return not (self.missing or self.corrupt or self.unreadable)

    def __str__(self) -> str:
        lines = [f"{self.checked} images checked: {len(self.missing)} missing, {len(self.corrupt)} corrupt"]
        lines += [f"  missing: {path}" for path in self.missing.values()]
        lines += [f"  corrupt: {path}: {reason}" for path, reason in self.corrupt.values()]
        lines += [f"  unreadable rows: {path.name}: {reason}" for path, reason in self.unreadable.items()]
        lines += [f"  not in any row: {path}" for path in self.orphans]
        if self.temporary:
            lines.append(f"  in the making, or left by dead workers: {len(self.temporary)} files, such as {self.temporary[0]}")
        lines += [f"  not ours: {path}" for path in self.foreign]
        return "\n".join(lines)


def verify(folder: SweepFolder, full: bool = False) -> Report:
    """Check every byte of all parts, and of every row that its image is there with the right size.

    `full` also reads every image: its SHA-256 must be the row's, and it must decode.
    """
    unreadable: dict[Path, str] = {}
    check = _Check(folder, full)
    known = array("q")
    checked = 0
    missing: dict[str, str] = {}
    corrupt: dict[str, tuple[str, str]] = {}
    for table in iter_rows(folder, _COLUMNS, unreadable):
        for row in table.to_pylist():
            image_id, image = row["image_id"], row["image"]
            if image is None:
                continue
            checked += 1
            found = container_of(image)
            known.append(hash(found[0] if found else image))
            reason = check.fault(row)
            if reason == _GONE:
                missing[image_id] = image
            elif reason:
                corrupt[image_id] = (image, reason)
    orphans, foreign = _unknown(folder, np.unique(np.frombuffer(known, np.int64)))
    temporary = tuple(sorted(path.relative_to(folder.path).as_posix() for path in list_temporary(folder)))
    return Report(checked, missing, corrupt, unreadable, orphans, temporary, foreign)


def repair(folder: SweepFolder, report: Report) -> int:
    """Take back what does not hold, so that resume makes exactly that again; returns how many images that is at least.

    Damaged files go to `damaged/`; the caller holds the folder's lock. Images of an unreadable part are made again too,
    but their number is not known here.
    """
    files = [folder.file(path) for path, _ in report.corrupt.values() if container_of(path) is None]
    blocks = {
        found[0] for path in [*report.missing.values(), *(path for path, _ in report.corrupt.values())] if (found := container_of(path))
    }
    # One image cannot be taken out of a block: all of them are made again.
    spoilt = [folder.file(block) for block in sorted(blocks)]
    folder.set_aside([file for file in [*files, *spoilt, *report.unreadable] if file.exists()])
    return drop_rows(folder, {*report.missing, *report.corrupt, *_ids_in(folder, blocks)})


def _ids_in(folder: SweepFolder, blocks: set[str]) -> Iterator[str]:
    """Of every row whose image is in one of these blocks."""
    if not blocks:
        return
    for table in iter_rows(folder, ("image_id", "image")):
        for row in table.to_pylist():
            found = container_of(row["image"] or "")
            if found and found[0] in blocks:
                yield row["image_id"]


_GONE = "gone"


class _Check:
    """Looks at images, wherever they are."""

    def __init__(self, folder: SweepFolder, full: bool) -> None:
        self._folder = folder
        self._full = full
        self._reader = ImageReader(folder)
        self._sizes: dict[str, int] = {}
        """Of blocks; 0 for one that is not whole."""

    def fault(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with a row's image."""
        found = container_of(row["image"])
        reason = self._block_fault(found[0], row) if found else _size_fault(self._folder.file(row["image"]), row["image_bytes"])
        return reason or (self._content_fault(row) if self._full else None)

    def _block_fault(self, block: str, row: Mapping[str, Any]) -> str | None:
        path = self._folder.file(block)
        if block not in self._sizes:
            self._sizes[block] = size_if_whole(path)
        size = self._sizes[block]
        if not size:
            return "its block is cut short" if path.exists() else _GONE
        return "lies beyond the end of its block" if (row["image_offset"] or 0) + row["image_bytes"] > size else None

    def _content_fault(self, row: Mapping[str, Any]) -> str | None:
        try:
            data = self._reader.read(row)
        except OSError as error:
            return str(error.strerror)
        if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
            return "its SHA-256 is not the one of its row"
        width, height = (row[name] or row[before] for name, before in zip(_SIZE, _DENOISED, strict=True))
        return _picture_fault(data, (width, height))


def _size_fault(file: Path, size: int) -> str | None:
    try:
        found = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return _GONE
    return None if found == size else f"has {found} bytes, its row says {size}"


def _picture_fault(data: bytes, size_px: tuple[int, int]) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
                found = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"cannot be decoded ({error})"
    return None if found == size_px else f"is {found[0]}x{found[1]}, its row says {size_px[0]}x{size_px[1]}"


def _unknown(folder: SweepFolder, known: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files of the images and rows folders that no row knows: our orphans, and foreign ones.

    `known` are the hashes of the others' paths, rising: of a hundred million paths no set is made.
    """
    parts = {part.relative_to(folder.path).as_posix() for part in folder.parts()}
    orphans: list[str] = []
    foreign: list[str] = []
    for paths in _iter_files(folder):
        hashes = np.array([hash(path) for path in paths], dtype=np.int64)
        unknown = np.searchsorted(known, hashes) == np.searchsorted(known, hashes, side="right")
        for path in itertools.compress(paths, unknown):
            name = path.rpartition("/")[2]
            if path not in parts and not name.startswith(TEMPORARY):
                (orphans if folder.is_image_name(name) or folder.is_block_name(name) else foreign).append(path)
    return tuple(sorted(orphans)), tuple(sorted(foreign))


def _iter_files(folder: SweepFolder) -> Iterator[list[str]]:
    """The files of one folder after the other, as rows speak of them."""
    for top in (folder.images, folder.blocks, folder.rows):
        for where, _, names in os.walk(top):
            above = Path(where).relative_to(folder.path).as_posix()
            yield [f"{above}/{name}" for name in names]
