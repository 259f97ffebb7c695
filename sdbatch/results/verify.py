"""Checking every row of a sweep against its image, and taking back what does not hold."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sdbatch.results.disk import TEMPORARY
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import damage_of, iter_rows
from sdbatch.results.upkeep import drop_rows

_COLUMNS = ("image_id", "image", "image_bytes", "image_sha256", "width", "height")


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
    """PNGs of the images folder that no row knows: left by a crash, made over when their cell is run again."""
    foreign: tuple[str, ...] = ()
    """Other files in the images and rows folders; never touched."""

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
        lines += [f"  not ours: {path}" for path in self.foreign]
        return "\n".join(lines)


def verify(folder: SweepFolder, full: bool = False) -> Report:
    """Check all pages of all parts, and of every row that its image is there with the right size.

    `full` also reads every image: its SHA-256 must be the row's, and it must decode.
    """
    report = Report(unreadable={part: reason for part in folder.parts() if (reason := damage_of(part))})
    known: set[str] = set()
    checked = 0
    for table in iter_rows(folder, _COLUMNS):
        for image_id, image, size, sha256, width, height in zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True):
            if image is None:
                continue
            checked += 1
            known.add(image)
            file = folder.file(image)
            reason = _size_fault(file, size) or (_content_fault(file, sha256, (width, height)) if full else None)
            if reason == _GONE:
                report.missing[image_id] = image
            elif reason:
                report.corrupt[image_id] = (image, reason)
    orphans, foreign = _unknown(folder, known)
    return Report(checked, report.missing, report.corrupt, report.unreadable, orphans, foreign)


def repair(folder: SweepFolder, report: Report) -> int:
    """Take back what does not hold, so that resume makes exactly that again; returns how many images that is at least.

    Damaged files go to `damaged/`; the caller holds the folder's lock. Images of an unreadable part are made again too,
    but their number is not known here.
    """
    files = [folder.file(path) for path, _ in report.corrupt.values()]
    folder.set_aside([file for file in [*files, *report.unreadable] if file.exists()])
    return drop_rows(folder, set(report.missing) | set(report.corrupt))


_GONE = "gone"


def _size_fault(file: Path, size: int) -> str | None:
    try:
        found = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return _GONE
    return None if found == size else f"has {found} bytes, its row says {size}"


def _content_fault(file: Path, sha256: str, size_px: tuple[int, int]) -> str | None:
    try:
        data = file.read_bytes()
    except OSError as error:
        return str(error.strerror)
    if hashlib.sha256(data).hexdigest() != sha256:
        return "its SHA-256 is not the one of its row"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
                found = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"cannot be decoded ({error})"
    return None if found == size_px else f"is {found[0]}x{found[1]}, its row says {size_px[0]}x{size_px[1]}"


def _unknown(folder: SweepFolder, known: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files of the images and rows folders that no row knows: our orphans, and foreign ones."""
    parts = {f"rows/{part.name}" for part in folder.parts()}
    orphans: list[str] = []
    foreign: list[str] = []
    for path in sorted(_files(folder)):
        name = path.rpartition("/")[2]
        if path in known or path in parts or name.startswith(TEMPORARY):
            continue
        (orphans if folder.is_image_name(name) else foreign).append(path)
    return tuple(orphans), tuple(foreign)


def _files(folder: SweepFolder) -> Iterator[str]:
    for top in (folder.images, folder.rows):
        for where, _, names in os.walk(top):
            for name in names:
                yield (Path(where) / name).relative_to(folder.path).as_posix()
