"""Sets of image ids as arrays: 16 bytes an id, where a set of strings takes a hundred."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
from collections.abc import Iterable, Iterator, Set
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IdArray = npt.NDArray[np.uint64]
"""[ids, 2]: the halves of each 128-bit id, the first digits first."""
Halves = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]
"""Sorted ids: all first halves, then all second ones, each in one stretch of memory, through which searches go."""
Mask = npt.NDArray[np.bool_]

_DIGITS = 32


def ids_of_column(column: pa.ChunkedArray) -> IdArray:
    """A column of ids as numbers. Raises ArrowInvalid for a text that is not 32 hex digits."""
    parts = [_ids_of_chunk(chunk) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def _ids_of_chunk(chunk: pa.Array) -> IdArray:
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    if data is None or chunk.null_count or not bool((np.diff(ends) == _DIGITS).all()):
        raise pa.ArrowInvalid("an image_id is not 32 hex digits")
    return ids_of_text(bytes(memoryview(data)[int(ends[0]) : int(ends[-1])]))


def ids_of_text(text: bytes) -> IdArray:
    """Ids written one after the other."""
    try:
        found = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise pa.ArrowInvalid("an image_id is not 32 hex digits") from None
    return np.frombuffer(found, ">u8").reshape(-1, 2).astype(np.uint64)


def texts_of(ids: IdArray) -> list[str]:
    """Ids as people read them."""
    text = ids.astype(">u8").tobytes().hex()
    return [text[start : start + _DIGITS] for start in range(0, len(text), _DIGITS)]


def column_of_ids(ids: IdArray) -> pa.Array:
    """Ids as a column of texts."""
    ends = np.arange(0, _DIGITS * (len(ids) + 1), _DIGITS, dtype=np.int32)
    text = ids.astype(">u8").tobytes().hex().encode()
    return pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(ends), pa.py_buffer(text)])


def order_of(ids: IdArray) -> npt.NDArray[np.int64]:
    """The order that sorts ids."""
    order = np.argsort(ids[:, 0])
    high = ids[order, 0]
    if bool((high[1:] == high[:-1]).any()):
        order = np.lexsort((ids[:, 1], ids[:, 0]))  # six times as slow, and needed only for ids that share a half
    return cast(npt.NDArray[np.int64], order)


def halves_of(ids: IdArray, order: npt.NDArray[np.int64]) -> Halves:
    """Ids in an order that sorts them, as `find_in` takes them."""
    return ids[order, 0], ids[order, 1]


def find_in(halves: Halves, ids: IdArray) -> npt.NDArray[np.int64]:
    """The place of each id among sorted ones that differ; -1 where it is not."""
    high, low = halves
    places = np.full(len(ids), -1, dtype=np.int64)
    left = np.argsort(ids[:, 0])  # looked up in their order, neighbours are found in the processor's cache
    place = np.empty(len(ids), dtype=np.int64)
    place[left] = np.searchsorted(high, ids[left, 0])
    # Ids that share their first half lie side by side; there is hardly ever more than one.
    while len(left):
        left = left[place[left] < len(high)]
        left = left[high[place[left]] == ids[left, 0]]
        hit = low[place[left]] == ids[left, 1]
        places[left[hit]] = place[left[hit]]
        left = left[~hit]
        place[left] += 1
    return places


class Ids(Set[str]):
    """An immutable set of ids."""

    __slots__ = ("_halves",)

    def __init__(self, ids: IdArray) -> None:
        """`ids` in any order, each once."""
        self._halves = halves_of(ids, order_of(ids))

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Ids:
        return cls(ids_of_text("".join(sorted(set(it))).encode()))

    def contains(self, ids: IdArray) -> Mask:
        """Which of these are in the set."""
        return find_in(self._halves, ids) >= 0

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, str) or len(item) != _DIGITS:
            return False
        try:
            return bool(self.contains(ids_of_text(item.encode()))[0])
        except pa.ArrowInvalid:
            return False

    def __iter__(self) -> Iterator[str]:
        yield from texts_of(np.stack(self._halves, axis=1))

    def __len__(self) -> int:
        return len(self._halves[0])

    def __repr__(self) -> str:
        return f"Ids({set(self)})"
