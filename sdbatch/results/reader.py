"""What is committed in a sweep folder, read a part at a time.

A part that cannot be read is reported by name and hides no other. Two rows of one image (two workers made it, or a
crash came between replacing parts) count once: a success before a fault, then the one made later.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdbatch.errors import FolderError
from sdbatch.results.arrow import empty_table, integers
from sdbatch.results.commit import check_keys, read_part
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import IdArray, Ids, Mask, order_of
from sdbatch.results.keys import Keys, Made, read_keys
from sdbatch.results.pace import Pace
from sdbatch.results.presence import find_lost
from sdbatch.results.schema import OK, SCHEMA, STATUSES

_log = logging.getLogger(__name__)
_OK = STATUSES.index(OK)
_COLUMNS = {"id": "<u8", "status": "u1", "made_us": "<i8"}
"""What is kept of the keys, and as what."""
READERS = 16
"""Threads that read parts: a disk or a server that is asked for one at a time makes us wait for each."""
PARTS_AT_ONCE = 4


@dataclass(frozen=True)
class Index:
    """The keys of all rows that count, without the rows."""

    parts: list[Path]
    part: npt.NDArray[np.int32]
    """Of each row: the number of its part; rising."""
    slot: npt.NDArray[np.int32]
    """Of each row: its place in that part."""
    ids: IdArray
    status: npt.NDArray[np.uint8]
    """Index into STATUSES."""
    made_us: npt.NDArray[np.int64]
    """When it was made, in microseconds since 1970 by the clock of its machine."""
    unreadable: dict[Path, str]
    """Parts that cannot be read, with the reason."""
    workers: dict[str, Made]
    """By worker; rows that do not count are counted here."""
    recipes: dict[str, Made]
    """By recipe id; as `workers`."""
    paces: dict[str, Pace]
    """By worker, of the parts that are one worker's alone."""
    repeated: int
    """Rows that do not count, since another of the same image does."""

    lost: dict[int, str]
    """Row -> the path of its image, where that is gone or has another size; none is known unless images were looked at."""

    def __len__(self) -> int:
        return len(self.part)

    @cached_property
    def gone(self) -> Mask:
        """Of each row, whether it is one of `lost`."""
        gone = np.zeros(len(self), dtype=bool)
        gone[list(self.lost)] = True
        return gone

    @cached_property
    def done(self) -> Ids:
        """Ids that need nothing more: successes whose image is not known to be lost."""
        return Ids(self.ids[~self.gone & (self.status == _OK)])

    @cached_property
    def faulty(self) -> Ids:
        """Ids that were tried and are no success: failed, not finite, or one colour."""
        return Ids(self.ids[~self.gone & (self.status != _OK)])

    def counts(self) -> dict[str, int]:
        """Images by status."""
        return dict(zip(STATUSES, np.bincount(self.status, minlength=len(STATUSES)).tolist(), strict=True))


def committed(folder: SweepFolder) -> Index:
    """What is done, what was tried in vain and what got lost. Checks every part and looks at every file's size."""
    return read_index(folder, check_keys, look=True)


def read_index(folder: SweepFolder, read: Callable[[Path], Keys] = read_keys, look: bool = False) -> Index:
    """The keys of a sweep, each image once: 33 bytes of memory an image, and some more while it is read.

    `read_keys` reads the end of each part, `check_keys` checks all of it; `look` also looks at each image's size.
    """
    parts: list[Path] = []
    lengths: list[int] = []
    columns = [bytearray() for _ in _COLUMNS]  # they grow in place, where arrays would be there twice
    unreadable: dict[Path, str] = {}
    workers: dict[str, Made] = {}
    recipes: dict[str, Made] = {}
    paces: dict[str, Pace] = {}
    lost: dict[int, str] = {}
    rows = 0
    for part, found in _iter_read(folder, read, look):
        if isinstance(found, FileNotFoundError):
            continue  # replaced by a merged part since the folder was listed
        if isinstance(found, Exception):
            unreadable[part] = _reason(found)
            continue
        keys = found.keys
        lost.update({rows + slot: path for slot, path in found.lost.items()})
        for name, column in zip(_COLUMNS, columns, strict=True):
            column += keys.rows[name].tobytes()
        for totals, own in ((workers, keys.workers), (recipes, keys.recipes)):
            for name, made in own.items():
                totals.setdefault(name, Made()).add(made)
        if len(keys.workers) == 1:
            paces.setdefault(next(iter(keys.workers)), Pace()).add(int(keys.rows["made_us"].max()), len(keys))
        parts.append(part)
        lengths.append(len(keys))
        rows += len(keys)
    ids, status, made_us = (np.frombuffer(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True))
    part_of, slot_of = _places(lengths)
    ids = ids.reshape(-1, 2)
    counts = _each_once(ids, status)
    if counts is not None:
        part_of, slot_of, ids, status, made_us = part_of[counts], slot_of[counts], ids[counts], status[counts], made_us[counts]
        lost = _renumbered(lost, counts)
    return Index(parts, part_of, slot_of, ids, status, made_us, unreadable, workers, recipes, paces, rows - len(ids), lost)


@dataclass(frozen=True, slots=True)
class _Read:
    keys: Keys
    lost: dict[int, str]
    """Places of rows whose image is gone."""


def _iter_read(folder: SweepFolder, read: Callable[[Path], Keys], look: bool) -> Iterator[tuple[Path, _Read | Exception]]:
    """Every part in its order, as it was read or why not. A few are read ahead, each by a thread that mostly waits."""

    def read_some(parts: Sequence[Path]) -> list[_Read | Exception]:
        return [read_one(part) for part in parts]

    def read_one(part: Path) -> _Read | Exception:
        try:
            keys = read(part)
        except (pa.ArrowException, OSError, ValueError) as error:
            return error
        return _Read(keys, find_lost(folder, keys) if look else {})

    parts = folder.parts()
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(parts), READERS * PARTS_AT_ONCE):
            ahead = parts[start : start + READERS * PARTS_AT_ONCE]
            tasks = [ahead[first : first + PARTS_AT_ONCE] for first in range(0, len(ahead), PARTS_AT_ONCE)]
            yield from zip(ahead, itertools.chain.from_iterable(pool.map(read_some, tasks)), strict=True)


def _places(lengths: Sequence[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Of each row the number of its part, and its place in that."""
    begins = np.cumsum([0, *lengths], dtype=np.int64)
    part = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    slot = np.arange(begins[-1], dtype=np.int32)
    slot -= np.repeat(begins[:-1].astype(np.int32), lengths)
    return part, slot


def _renumbered(lost: dict[int, str], counts: npt.NDArray[np.int64]) -> dict[int, str]:
    """`lost` by the places that its rows have among those that count."""
    places = np.searchsorted(counts, list(lost)).tolist()
    return {place: path for place, (row, path) in zip(places, lost.items(), strict=True) if place < len(counts) and counts[place] == row}


def load_rows(folder: SweepFolder, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows as one table, each image once; give `columns` for large sweeps.

    Raises: FolderError naming a column that does not exist.
    """
    schema = _schema(columns)
    return pa.concat_tables([empty_table(schema), *iter_rows(folder, columns)]).combine_chunks()


def iter_rows(folder: SweepFolder, columns: Sequence[str] | None = None, unreadable: dict[Path, str] | None = None) -> Iterator[pa.Table]:
    """Rows part by part, each image once; memory holds one part at a time and the ids of all.

    Parts that cannot be read are warned of, or added to `unreadable` with the reason: then every part is read.
    """
    schema = _schema(columns)
    index = read_index(folder)
    tell = _warn if unreadable is None else unreadable.__setitem__
    for part, reason in index.unreadable.items():
        tell(part, reason)
    bounds = np.searchsorted(index.part, np.arange(len(index.parts) + 1))
    for number, part in enumerate(index.parts):
        first, last = bounds[number], bounds[number + 1]
        if first == last and unreadable is None:
            continue
        try:
            table = _read(part, schema)
        except (pa.ArrowException, OSError) as error:
            tell(part, _reason(error))
            continue
        # All of them, mostly.
        yield table if last - first == len(table) else table.take(integers(index.slot[first:last].astype(np.int64)))


def iter_faulty(folder: SweepFolder, index: Index, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of an index that are no success, part by part; parts without one are not read."""
    schema = _schema(columns)
    wanted = np.flatnonzero(index.status != _OK)
    for number in np.unique(index.part[wanted]).tolist():
        slots = index.slot[wanted[index.part[wanted] == number]]
        try:
            yield _read(index.parts[number], schema).take(integers(slots.astype(np.int64)))
        except (pa.ArrowException, OSError) as error:
            _warn(index.parts[number], str(error))


def damage_of(part: Path) -> str | None:
    """What is wrong with a part, after reading and checking all of it; None when nothing is."""
    try:
        _read(part, SCHEMA)
    except (pa.ArrowException, OSError) as error:
        return _reason(error)
    return None


def _schema(columns: Sequence[str] | None) -> pa.Schema:
    names = list(columns) if columns is not None else SCHEMA.names
    if wrong := [name for name in names if name not in SCHEMA.names]:
        raise FolderError(f"{', '.join(wrong)}: no such column in a row. There are: {', '.join(SCHEMA.names)}.")
    return pa.schema([SCHEMA.field(name) for name in names], metadata=SCHEMA.metadata)


def _each_once(ids: IdArray, status: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64] | None:
    """The row that counts of each image, in the order of the rows; None when all do.

    Of several the last in the order of shard and block, which is that of their commits: clocks may be set back.
    """
    half = np.sort(ids[:, 0])
    if not len(half) or not bool((half[1:] == half[:-1]).any()):
        return None
    by_id = order_of(ids)
    same = (ids[by_id][1:] == ids[by_id][:-1]).all(axis=1)
    if not bool(same.any()):
        return None
    later = np.arange(len(ids))
    ranked = np.lexsort((-later, status != _OK, ids[:, 1], ids[:, 0]))
    first = np.concatenate([[True], (ids[ranked][1:] != ids[ranked][:-1]).any(axis=1)])
    return cast(npt.NDArray[np.int64], np.sort(ranked[first]))


def _read(part: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` in one part; a column that an earlier version did not write is null."""
    table = read_part(part, schema.names)
    if "image_id" in schema.names and "image_id" not in table.column_names:
        raise pa.ArrowInvalid("not a part of rows: no column image_id")
    return pa.table([_column(table, field) for field in schema], schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table[field.name]
    # Only what an earlier version wrote as another type: casting loads all of Arrow's functions, a tenth of a second of CPU.
    return column if column.type == field.type else column.cast(field.type)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _warn(part: Path, reason: str) -> None:
    _log.warning("%s: cannot be read, its rows are left out (%s). `sdbatch verify` tells more.", part, reason)
