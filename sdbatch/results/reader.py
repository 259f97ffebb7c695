"""What is committed in a sweep folder, read a part at a time.

A part that cannot be read is reported by name and hides no other. Two rows of one image (two workers made it, or a
crash came between replacing parts) count once: a success before a fault, then the one made later.
"""

# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and fills pyarrow.compute when it is imported.

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdbatch.errors import FolderError
from sdbatch.results.arrow import empty_table, integers, iter_texts, numpy_of, strings
from sdbatch.results.commit import read_part
from sdbatch.results.folder import SweepFolder
from sdbatch.results.schema import OK, SCHEMA, STATUSES

_log = logging.getLogger(__name__)
_KEYS = ("image_id", "status", "made_at", "image", "image_bytes")


@dataclass(frozen=True, slots=True)
class Committed:
    """The state of a sweep, by id: what its rows say and whether the images are there."""

    statuses: dict[str, str]
    """Status of every image whose row stands: `ok` (and its file is there with the right size), `failed`, `nan`, `flat`."""
    lost: dict[str, str]
    """Ids whose row speaks of a file that is gone or has another size, with its path in the folder."""
    unreadable: dict[Path, str]
    """Parts that cannot be read, with the reason."""

    @property
    def done(self) -> set[str]:
        """Ids that need nothing more: successes whose file is there."""
        return {image_id for image_id, status in self.statuses.items() if status == OK}

    @property
    def faulty(self) -> set[str]:
        """Ids that were tried and are no success: failed, not finite, or one colour."""
        return {image_id for image_id, status in self.statuses.items() if status != OK}


@dataclass(frozen=True, slots=True)
class _Index:
    """Which rows of which part count."""

    parts: list[Path]
    keys: pa.Table
    """The key columns of the rows that count, with `part` (index into parts) and `slot` (row in that part)."""
    unreadable: dict[Path, str]


def committed(folder: SweepFolder) -> Committed:
    """What is done, what was tried in vain and what got lost. Reads five columns and looks at every file's size."""
    index = _index(folder)
    words: dict[str, str] = {status: status for status in STATUSES}  # one string object per status, not one per row
    statuses: dict[str, str] = {}
    lost: dict[str, str] = {}
    image_ids, states, images = (iter_texts(index.keys[name]) for name in ("image_id", "status", "image"))
    sizes: list[int] = numpy_of(index.keys["image_bytes"]).tolist()
    for image_id, status, image, size in zip(image_ids, states, images, sizes, strict=True):
        if image and _size(folder, image) != size:
            lost[image_id] = image
        else:
            statuses[image_id] = words.get(status, status)
    return Committed(statuses, lost, index.unreadable)


def load_rows(folder: SweepFolder, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows as one table, each image once; give `columns` for large sweeps.

    Raises: FolderError naming a column that does not exist.
    """
    schema = _schema(columns)
    return pa.concat_tables([empty_table(schema), *iter_rows(folder, columns)]).combine_chunks()


def iter_rows(folder: SweepFolder, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows part by part, each image once; memory holds one part at a time and the ids of all."""
    schema = _schema(columns)
    index = _index(folder)
    for part, reason in index.unreadable.items():
        _warn(part, reason)
    owners, slots = numpy_of(index.keys["part"]), numpy_of(index.keys["slot"])
    order = np.lexsort((slots, owners))
    owners, slots = owners[order], slots[order]
    for number, part in enumerate(index.parts):
        first, last = np.searchsorted(owners, [number, number + 1])
        if first == last:
            continue
        try:
            table = _read(part, schema)
        except (pa.ArrowException, OSError) as error:
            _warn(part, str(error))
            continue
        yield table.take(integers(slots[first:last]))


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


def _index(folder: SweepFolder) -> _Index:
    schema = _schema(_KEYS)
    parts = folder.parts()
    tables: list[pa.Table] = [_placed(empty_table(schema), 0)]
    unreadable: dict[Path, str] = {}
    for number, part in enumerate(parts):
        try:
            tables.append(_placed(_read(part, schema), number))
        except FileNotFoundError:
            continue  # replaced by a merged part since the folder was listed
        except (pa.ArrowException, OSError) as error:
            unreadable[part] = _reason(error)
    return _Index(parts, _each_once(pa.concat_tables(tables).combine_chunks()), unreadable)


def _placed(table: pa.Table, number: int) -> pa.Table:
    """A table of keys with its part's number and each row's place in it."""
    count = table.num_rows
    with_part = table.append_column("part", integers(np.full(count, number, np.int64)))
    return with_part.append_column("slot", integers(np.arange(count, dtype=np.int64)))


def _each_once(keys: pa.Table) -> pa.Table:
    """The row that counts of each image."""
    if pc.count_distinct(keys["image_id"]).as_py() == keys.num_rows:
        return keys
    ranked = keys.append_column("fault", pc.invert(pc.is_in(keys["status"], value_set=strings([OK]))))
    order = [("image_id", "ascending"), ("fault", "ascending"), ("made_at", "descending"), ("part", "descending")]
    ranked = ranked.sort_by(order).combine_chunks()
    ids = ranked["image_id"]
    changes = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    first = pa.chunked_array([pc.is_null(pa.nulls(1)), *changes.chunks])
    return ranked.filter(first).drop_columns(["fault"])


def _read(part: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` in one part; a column that an earlier version did not write is null."""
    table = read_part(part, schema.names)
    if "image_id" in schema.names and "image_id" not in table.column_names:
        raise pa.ArrowInvalid("not a part of rows: no column image_id")
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def _size(folder: SweepFolder, image: str) -> int | None:
    try:
        return os.stat(f"{folder.path}/{image}").st_size  # noqa: PTH116 - a million times, Path is three times as slow
    except (FileNotFoundError, NotADirectoryError):
        return None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _warn(part: Path, reason: str) -> None:
    _log.warning("%s: cannot be read, its rows are left out (%s). `sdbatch verify` tells more.", part, reason)
