"""The keys of a part: what tells which images it commits, in a block of its own that is read without reading the rows.

It lies where Parquet allows bytes that belong to no page, just before the footer, with a checksum of its own. A status of
ten thousand parts so reads some kilobytes of each, and decodes no column.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdbatch.results.arrow import iter_texts, numpy_of
from sdbatch.results.ids import IdArray, ids_of_column
from sdbatch.results.schema import OK, STATUSES

SEAL = b"sdbatch crc32 "
"""Before the CRC-32 of all other bytes of the file; both just before the footer."""
SEAL_BYTES = len(SEAL) + 4

_MAGIC = b"sdbatch keys 1 "
_NUMBERS = struct.Struct("<III")
"""How many rows, how many bytes, and their CRC-32."""
_TRAILER_BYTES = len(_MAGIC) + _NUMBERS.size
_TAIL_BYTES = 32 * 1024
"""What a first read takes of a part: the footer, and the keys of a block."""
_OK = STATUSES.index(OK)

_ROW = np.dtype([("id", "<u8", (2,)), ("made_us", "<i8"), ("size", "<i8"), ("offset", "<i8"), ("place", "<u2"), ("status", "u1")])

Rows = npt.NDArray[Any]
"""Records of `_ROW`."""


@dataclass(slots=True)
class Made:
    """What a worker, or a recipe, made."""

    ok: int = 0
    faulty: int = 0
    seconds: float = 0.0
    """Spent on it by the device."""

    def add(self, other: Made) -> None:
        """Count another in."""
        self.ok += other.ok
        self.faulty += other.faulty
        self.seconds += other.seconds


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one part's rows, in their order."""

    rows: Rows
    places: list[str]
    """Where images are: `*` stands for the id; empty for no image."""
    workers: dict[str, Made] = field(default_factory=dict[str, Made])
    recipes: dict[str, Made] = field(default_factory=dict[str, Made])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> IdArray:
        """The image ids."""
        return cast(IdArray, self.rows["id"])


def keys_of(table: pa.Table) -> Keys:
    """The keys of some rows. Raises ArrowInvalid when an id or a status is none."""
    if "image_id" not in table.column_names or "status" not in table.column_names:
        raise pa.ArrowInvalid("not rows: no column image_id or status")
    rows = np.zeros(table.num_rows, _ROW)
    rows["id"] = ids_of_column(table["image_id"])
    statuses = list(iter_texts(table["status"]))
    try:
        rows["status"] = [STATUSES.index(status) for status in statuses]
    except ValueError as error:
        raise pa.ArrowInvalid(f"a status is none of {', '.join(STATUSES)} ({error})") from None
    for name, column in (("made_us", "made_at"), ("size", "image_bytes"), ("offset", "image_offset")):
        rows[name] = _numbers(table, column)
    places: dict[str, int] = {}
    texts = _texts(table, "image_id"), _texts(table, "image")
    rows["place"] = [places.setdefault(_place(image_id, image), len(places)) for image_id, image in zip(*texts, strict=True)]
    keys = Keys(rows, list(places))
    seconds = sum(_seconds(table, name) for name in ("encode_s", "denoise_s", "decode_s"))
    for made, column in ((keys.workers, "worker"), (keys.recipes, "recipe_id")):
        for name, status, spent in zip(_texts(table, column), statuses, cast("Any", seconds), strict=True):
            is_ok = status == OK
            made.setdefault(name, Made()).add(Made(int(is_ok), int(not is_ok), float(spent)))
    return keys


def encode(keys: Keys) -> bytes:
    """The block of bytes that a part carries."""
    head = {
        "places": keys.places,
        "workers": {name: _plain(made) for name, made in keys.workers.items()},
        "recipes": {name: _plain(made) for name, made in keys.recipes.items()},
    }
    body = keys.rows.tobytes() + json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return body + _MAGIC + _NUMBERS.pack(len(keys.rows), len(body), zlib.crc32(body))


def decode(data: bytes, end: int) -> Keys:
    """The keys whose block ends at `end`. Raises ArrowInvalid when there is none, or its checksum is wrong."""
    trailer = end - _TRAILER_BYTES
    if trailer < 0 or data[trailer : trailer + len(_MAGIC)] != _MAGIC:
        raise pa.ArrowInvalid("not a whole part: it has no keys; cut short, or written by another program")
    count, length, crc = _NUMBERS.unpack_from(data, end - _NUMBERS.size)
    body = memoryview(data)[max(0, trailer - length) : trailer]
    if len(body) != length or zlib.crc32(body) != crc:
        raise pa.ArrowInvalid("the checksum of its keys is wrong: some bits of it changed")
    rows = np.frombuffer(body, _ROW, count).copy()  # not to keep the whole part in memory
    head = json.loads(bytes(body[count * _ROW.itemsize :]))
    workers, recipes = ({name: Made(*values) for name, values in head[what].items()} for what in ("workers", "recipes"))
    return Keys(rows, head["places"], workers, recipes)


def read_keys(part: Path) -> Keys:
    """The keys of a part, from its last bytes. The rows are not looked at: `read_part` checks them.

    Raises: ArrowInvalid when it is damaged; OSError when the file cannot be read.
    """
    handle = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        data, wanted = b"", min(size, _TAIL_BYTES)
        while len(data) < wanted:
            data = os.pread(handle, wanted, size - wanted)
            # First the footer says where the keys end, then they say how long they are.
            wanted = min(size, max(wanted, _needed(data)))
    finally:
        os.close(handle)
    return decode(data, keys_end(data))


def keys_end(data: bytes) -> int:
    """Where the keys end in the last bytes of a part. Raises ArrowInvalid when there can be none."""
    end = footer_at(data) - SEAL_BYTES
    if data[-4:] != b"PAR1" or end < 0 or data[end : end + len(SEAL)] != SEAL:
        raise pa.ArrowInvalid(f"not a whole part ({len(data)} bytes at its end): cut short, or written by another program")
    return end


def footer_at(data: bytes) -> int:
    """Where the footer begins; nonsense for what is no Parquet file."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _needed(data: bytes) -> int:
    """How many of the last bytes of a part hold its keys, as far as these bytes tell."""
    end = footer_at(data) - SEAL_BYTES
    keys_bytes = _TRAILER_BYTES + (int.from_bytes(data[end - 8 : end - 4], "little") if end >= _TRAILER_BYTES else 0)
    return len(data) - end + keys_bytes


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """A column of whole numbers, 0 where it is null or not there."""
    return numpy_of(table[name].cast(pa.int64())) if name in table.column_names else np.zeros(table.num_rows, np.int64)


def _seconds(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return numpy_of(table[name], np.float64) if name in table.column_names else np.zeros(table.num_rows)


def _texts(table: pa.Table, name: str) -> Sequence[str]:
    return list(iter_texts(table[name])) if name in table.column_names else [""] * table.num_rows


def _place(image_id: str, image: str) -> str:
    """The pattern of an image's path."""
    return image.replace(image_id, "*") if image_id else image


def path_of(place: str, image_id: str) -> str:
    """The path that a pattern and an id stand for."""
    return place.replace("*", image_id)


def _plain(made: Made) -> list[float]:
    return [made.ok, made.faulty, round(made.seconds, 4)]
