"""Larger files for a sweep that is made: neighbouring parts become one, and so do the blocks of images they speak of.

New blocks are published first, then the part that speaks of them, then the old parts go, then the old blocks. After a
crash between two of these, blocks that no row speaks of are what is left over; the next time begins by removing them.
Only while nobody works on the sweep.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdbatch.errors import FolderError
from sdbatch.results.arrow import integers, iter_texts, numpy_of, strings
from sdbatch.results.block import PACKINGS_BY_SUFFIX, ImageReader, container_of
from sdbatch.results.commit import read_part
from sdbatch.results.disk import explained, publish, sync_folders, temporary_name
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.keys import read_keys
from sdbatch.results.reader import Index, read_index
from sdbatch.results.row import Row
from sdbatch.results.upkeep import MERGED_ROWS, iter_runs, supersede

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Compacted:
    """What there was, and what there is."""

    parts: tuple[int, int]
    blocks: tuple[int, int]

    def __str__(self) -> str:
        text = f"{self.parts[0]} parts of rows are {self.parts[1]} now"
        return text + (f", {self.blocks[0]} blocks of images are {self.blocks[1]}" if self.blocks[0] else "")


def compact(folder: SweepFolder, block_mb: int = 256) -> Compacted:
    """Merge parts up to MERGED_ROWS rows, and blocks up to `block_mb`. Doing it again does nothing.

    Raises: FolderError when a part or an image is not what was committed; nothing of it is lost then.
    """
    before = len(folder.parts()), len(folder.block_files())
    index = read_index(folder)
    for part, reason in index.unreadable.items():
        raise FolderError(f"{part}: cannot be read ({reason}). Put the sweep in order first: sdbatch resume {folder.path}")
    _remove_orphans(folder, index.parts)
    counting = _Counting(index)
    for run in iter_runs(folder, None):
        for parts in _cut(run, counting):
            _merge(folder, parts, counting, block_mb * MEGABYTE)
    return Compacted((before[0], len(folder.parts())), (before[1], len(folder.block_files())))


class _Counting:
    """Which rows of each part count."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._numbers = {part: number for number, part in enumerate(index.parts)}

    def slots(self, part: Path) -> pa.Array:
        """Their places in the part."""
        number = self._numbers[part]
        first, last = np.searchsorted(self._index.part, [number, number + 1])
        return integers(self._index.slot[first:last].astype(np.int64))


def _remove_orphans(folder: SweepFolder, parts: Sequence[Path]) -> None:
    known = {found[0] for part in parts for place in read_keys(part).places if (found := container_of(place))}
    orphans = [path for path in folder.block_files() if path.relative_to(folder.path).as_posix() not in known]
    _remove(orphans)


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        with explained("cannot remove", path):
            path.unlink(missing_ok=True)
    sync_folders({path.parent for path in files})


def _cut(run: Sequence[Path], counting: _Counting) -> Iterator[list[Path]]:
    """Parts of a run that make one."""
    taken: list[Path] = []
    rows = 0
    for part in run:
        count = len(counting.slots(part))
        if taken and rows + count > MERGED_ROWS:
            yield taken
            taken, rows = [], 0
        taken.append(part)
        rows += count
    if taken:
        yield taken


def _merge(folder: SweepFolder, parts: Sequence[Path], counting: _Counting, block_bytes: int) -> None:
    tables = [read_part(part) for part in parts]
    if any(not table.schema.equals(tables[0].schema) for table in tables):
        return  # of different versions: they stay as they are
    old = _blocks_of(pa.concat_tables(tables))
    table = pa.concat_tables([table.take(counting.slots(part)) for part, table in zip(parts, tables, strict=True)]).combine_chunks()
    groups = _cut_blocks(table, block_bytes)
    fewer = len(old) > len(groups)
    if len(parts) == 1 and not fewer:
        return
    if fewer:
        table = _repack(folder, parts, table, groups)
    supersede(folder, parts, table)
    if fewer:
        _remove([folder.file(block) for block in old])


def _blocks_of(table: pa.Table) -> list[str]:
    """The blocks that rows speak of, in their order."""
    return list(dict.fromkeys(found[0] for image in iter_texts(table["image"]) if (found := container_of(image))))


def _cut_blocks(table: pa.Table, most_bytes: int) -> list[tuple[str, list[int]]]:
    """For each new block its suffix and the numbers of its rows."""
    groups: list[tuple[str, list[int]]] = []
    open_groups: dict[str, tuple[int, int]] = {}
    sizes = numpy_of(table["image_bytes"]).tolist()
    for number, image in enumerate(iter_texts(table["image"])):
        if (found := container_of(image)) is None:
            continue
        suffix = Path(found[0]).suffix
        group, filled = open_groups.get(suffix, (-1, most_bytes))
        if filled + sizes[number] > most_bytes:
            groups.append((suffix, []))
            group, filled = len(groups) - 1, 0
        groups[group][1].append(number)
        open_groups[suffix] = (group, filled + sizes[number])
    return groups


def _repack(folder: SweepFolder, parts: Sequence[Path], table: pa.Table, groups: Sequence[tuple[str, list[int]]]) -> pa.Table:
    """Write the images of some rows into new blocks; returns the rows as they speak of these."""
    images = list(iter_texts(table["image"]))
    offsets = numpy_of(table["image_offset"]).copy()
    for suffix, numbers in groups:
        final = _free_block(folder, parts, suffix)
        name = final.relative_to(folder.path).as_posix()
        samples = _Samples(folder, table, numbers, name)
        temporary = final.with_name(temporary_name(final.name))
        with explained("cannot write", final), temporary.open("xb") as handle:
            found = PACKINGS_BY_SUFFIX[suffix].write(handle, iter(samples))
            handle.flush()
            os.fsync(handle.fileno())
        if not publish(temporary, final):
            raise FolderError(f"{final}: another process writes to this sweep. Stop it, then run the same command again.")
        sync_folders([final.parent])
        for place, number in enumerate(numbers):
            images[number] = f"{name}/{samples.image_ids[place]}.png"
            offsets[number] = found[place] if found else 0
    return _with_images(table, images, offsets, {number for suffix, numbers in groups if suffix == ".tar" for number in numbers})


def _free_block(folder: SweepFolder, parts: Sequence[Path], suffix: str) -> Path:
    number = LATER + 1
    while (path := folder.merged_block(parts[0], parts[-1], number, suffix)).exists():
        number += 1
    return path


class _Samples:
    """Rows with their images, read and checked as they are taken."""

    def __init__(self, folder: SweepFolder, table: pa.Table, numbers: Sequence[int], block: str) -> None:
        self._reader = ImageReader(folder)
        self._folder = folder
        self._table = table.take(integers(np.array(numbers, dtype=np.int64)))
        self._block = block
        self.image_ids = list(iter_texts(self._table["image_id"]))

    def __iter__(self) -> Iterator[tuple[Row, bytes]]:
        for batch in self._table.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                yield row | {"image": f"{self._block}/{row['image_id']}.png", "image_offset": None}, self._read(row)

    def _read(self, row: Row) -> bytes:
        again = f"Have it made again: sdbatch verify {self._folder.path} full=true repair=true"
        try:
            data = self._reader.read(row)
        except OSError as error:
            raise FolderError(f"{self._folder.path / row['image']}: cannot be read ({error.strerror}). {again}") from error
        if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
            raise FolderError(f"{self._folder.path / row['image']}: is not the image its row says. {again}")
        return data


def _with_images(table: pa.Table, images: list[str], offsets: np.ndarray[tuple[int], np.dtype[np.int64]], in_tar: set[int]) -> pa.Table:
    """The table with these paths and offsets; where there was no image, or no offset to tell, it stays null."""
    has_image = table["image"].is_valid()
    offset = integers(offsets)
    told = [number in in_tar for number in range(len(images))]
    columns = {
        "image": _masked(strings(images), has_image.combine_chunks()),
        "image_offset": _masked(offset, _booleans(told)),
    }
    return pa.table([columns.get(name, table[name]) for name in table.schema.names], schema=table.schema)


def _masked(values: pa.Array, valid: pa.Array) -> pa.Array:
    """Values, null where they are not valid."""
    bitmap = np.packbits(_flags(valid), bitorder="little").tobytes()
    return pa.Array.from_buffers(values.type, len(values), [pa.py_buffer(bitmap), *values.buffers()[1:]])


def _flags(valid: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    bits = np.unpackbits(np.frombuffer(valid.buffers()[1], np.uint8), bitorder="little")
    return bits[valid.offset : valid.offset + len(valid)]


def _booleans(values: Sequence[bool]) -> pa.Array:
    bitmap = np.packbits(np.array(values, dtype=bool), bitorder="little").tobytes()
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bitmap)])
