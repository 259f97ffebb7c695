"""A sweep as a dataset: Parquet with the images inside for Hugging Face `datasets`, or WebDataset tar shards.

An export is built beside its place and gets its name in one rename, so a folder of that name is whole. One that was
killed goes on with the shards it had. Only successes are exported, and each image must be the one its row committed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from sdbatch.errors import FolderError
from sdbatch.results.block import ImageReader
from sdbatch.results.disk import explained, replace, sync_folders, write_file
from sdbatch.results.folder import FLAT_LIMIT, SweepFolder
from sdbatch.results.lock import LOCK, holding
from sdbatch.results.parquet_shard import write_parquet_shard
from sdbatch.results.reader import iter_rows
from sdbatch.results.row import Row, canonical_json
from sdbatch.results.schema import OK
from sdbatch.results.tar_shard import write_tar_shard

MARKER = ".export.json"
"""Says what an export holds. The dot keeps it out of the way of readers that take a whole folder."""

MEGABYTE = 1_000_000
FOLDER_SHARDS = 1000
"""Shards of one folder, where there are more than FLAT_LIMIT in all."""

Sample = tuple[Row, bytes]
"""A row and the bytes of its PNG."""


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export."""

    path: Path
    shards: tuple[str, ...]
    """Files in order, as paths in the folder."""
    images: int
    size: int
    """Bytes of all images."""


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    file_name: str
    """Pattern of a shard's name, with its number and their count."""
    write: Callable[[IO[bytes], Iterator[Sample]], object]


_PARQUET = _Format("parquet", "train-{0:05d}-of-{1:05d}.parquet", write_parquet_shard)
_WEBDATASET = _Format("webdataset", "train-{0:06d}.tar", write_tar_shard)


def export_parquet(folder: SweepFolder, out: Path | str, shard_mb: int = 256) -> Export:
    """Export to `out` as Parquet shards that `datasets.load_dataset("parquet", data_dir=out)` shows with images.

    Raises: FolderError when `out` holds something else, or an image is not what its row says.
    """
    return _export(folder, Path(out), _PARQUET, shard_mb)


def export_webdataset(folder: SweepFolder, out: Path | str, shard_mb: int = 256) -> Export:
    """Export to `out` as tar shards of `<image_id>.png`, `.json` (the row) and `.txt` (the prompt).

    Raises: FolderError when `out` holds something else, or an image is not what its row says.
    """
    return _export(folder, Path(out), _WEBDATASET, shard_mb)


def _export(folder: SweepFolder, out: Path, form: _Format, shard_mb: int) -> Export:
    counts, size, content = _cut(folder, shard_mb * MEGABYTE)
    names = tuple(_name(form, number, len(counts)) for number in range(len(counts)))
    facts = {"format": form.name, "shards": names, "images": sum(counts), "size": size, "content": content}
    mark = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    export = Export(out, names, sum(counts), size)
    if not counts:
        raise FolderError(f"{folder.path}: holds no finished image, so there is nothing to export.")
    if _is_done(folder, out, mark):
        return export
    with explained("cannot make", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = out.parent / _working_name(out, mark)
        _refuse_full_disk(out, size)
        work.mkdir(exist_ok=True)
    with holding(work / LOCK):
        samples = _Samples(folder)
        for name, count in zip(names, counts, strict=True):
            _write_shard(work / name, form, samples.take(count))
        if samples.content.hexdigest() != content:
            raise FolderError(f"{folder.path}: changed while it was exported. Wait for the sweep to end, then export again.")
        write_file(work / MARKER, (json.dumps({"sha256": mark, **facts}, indent=2) + "\n").encode())
        (work / LOCK).unlink()
        _take_place(work, out)
    for stale in out.parent.glob(f"{_working_name(out, '')}*"):
        shutil.rmtree(stale, ignore_errors=True)  # earlier states of the sweep
    return export


def _name(form: _Format, number: int, count: int) -> str:
    name = form.file_name.format(number, count)
    return name if count <= FLAT_LIMIT else f"{number // FOLDER_SHARDS:04d}/{name}"


def _take_place(work: Path, out: Path) -> None:
    """Give a finished export its name; an earlier one there, as `_is_done` allowed it, goes first."""
    with explained("cannot finish", out):
        if out.exists():
            out.rename(out.parent / f"{work.name}-old")
        work.rename(out)
    sync_folders([*(path for path in out.iterdir() if path.is_dir()), out, out.absolute().parent])


def _working_name(out: Path, mark: str) -> str:
    return f".tmp-export-{out.name}-{mark[:12]}"


def _cut(folder: SweepFolder, shard_bytes: int) -> tuple[list[int], int, str]:
    """Images per shard, bytes of all images, and a hash of which images those are."""
    counts: list[int] = []
    total = filled = 0
    content = hashlib.sha256()
    for table in iter_rows(folder, ("image_id", "status", "image_bytes", "image_sha256")):
        for row in table.to_pylist():
            if row["status"] != OK:
                continue
            if not counts or filled + row["image_bytes"] > shard_bytes:
                counts.append(0)
                filled = 0
            counts[-1] += 1
            filled += row["image_bytes"]
            total += row["image_bytes"]
            content.update(_line(row))
    return counts, total, content.hexdigest()


class _Samples:
    """All successes in the order of `_cut`, read as they are taken."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._reader = ImageReader(folder)
        batches = (batch for table in iter_rows(folder) for batch in table.to_batches(max_chunksize=1024))
        self._rows = (row for batch in batches for row in batch.to_pylist() if row["status"] == OK)
        self.content = hashlib.sha256()
        """Grows to what `_cut` returned, unless the sweep changes meanwhile."""

    def take(self, count: int) -> Iterator[Callable[[], Sample]]:
        """The next rows; the image of one is read when it is called."""
        for row in itertools.islice(self._rows, count):
            self.content.update(_line(row))
            yield partial(self._sample, row)

    def _sample(self, row: Row) -> Sample:
        return row, _read_image(self._folder, self._reader, row)


def _line(row: Row) -> bytes:
    return f"{row['image_id']} {row['image_sha256']}\n".encode()


def _read_image(folder: SweepFolder, reader: ImageReader, row: Row) -> bytes:
    again = "Run `sdbatch verify` to have it made again."
    try:
        data = reader.read(row)
    except OSError as error:
        raise FolderError(f"{folder.path / row['image']}: cannot be read ({error.strerror}). {again}") from error
    if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
        raise FolderError(f"{folder.path / row['image']}: is not the image its row says. {again}")
    return data


def _write_shard(final: Path, form: _Format, samples: Iterator[Callable[[], Sample]]) -> None:
    """Write samples as one file, or pass over them when it is there from an earlier try."""
    if final.exists():
        for _ in samples:
            pass
        return
    temporary = final.with_name(f".tmp-{final.name}")
    with explained("cannot make", final.parent):
        final.parent.mkdir(exist_ok=True)
    with explained("cannot write", final), temporary.open("wb") as handle:
        form.write(handle, (read() for read in samples))
        handle.flush()
        os.fsync(handle.fileno())
    replace(temporary, final)


def _is_done(folder: SweepFolder, out: Path, mark: str) -> bool:
    """Whether `out` is this very export already.

    An earlier export of the sweep inside its own folder may be replaced, if a user added nothing to it.

    Raises: FolderError when `out` is anything else but an empty folder.
    """
    if not out.exists():
        return False
    found = _marker(out)
    if found.get("sha256") == mark:
        return True
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")} if out.is_dir() else {""}
    shards: Sequence[str] = found.get("shards", ())
    own = {MARKER, *shards, *(above for shard in shards if (above := shard.rpartition("/")[0]))}
    is_ours = bool(found) and folder.path.resolve() in out.resolve().parents
    if names - (own if is_ours else set[str]()):
        held = "another export" if found else "other files"
        raise FolderError(f"out={out}: holds {held}. Choose another folder, or delete this one.")
    return False


def _marker(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_full_disk(out: Path, size: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise FolderError(f"out={out}: needs {size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. Choose another disk or free some.")
