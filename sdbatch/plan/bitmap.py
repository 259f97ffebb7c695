"""Which cells of the order a plan has: one bit a cell, however many there are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sdbatch.plan.axis import Codes

BLOCK = 65_536
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
"""Of each byte, how many of its bits are set."""

Bits = npt.NDArray[np.uint8]


class Bitmap:
    """A set of whole numbers below a limit. The n-th of them is found without counting all before it."""

    def __init__(self, bits: Bits) -> None:
        """`bits` are whole blocks."""
        self._bits = bits
        self._before = np.concatenate([[0], np.cumsum(_ONES[bits].reshape(-1, BLOCK // 8).sum(axis=1, dtype=np.int64))])

    @classmethod
    def of(cls, limit: int, chunks: Iterable[Codes]) -> Bitmap:
        """The numbers of all chunks; in each they rise, and are below the limit."""
        bits: Bits = np.zeros(-(-limit // BLOCK) * BLOCK // 8, dtype=np.uint8)
        for numbers in chunks:
            if len(numbers):
                base = int(numbers[0]) // 8
                chosen = np.zeros(int(numbers[-1]) + 1 - 8 * base, dtype=bool)
                chosen[numbers - 8 * base] = True
                packed = np.packbits(chosen)
                bits[base : base + len(packed)] |= packed
        return cls(bits)

    @classmethod
    def all(cls, limit: int) -> Bitmap:
        """Every number below the limit."""
        return cls.of(limit, (np.arange(start, min(start + BLOCK, limit)) for start in range(0, limit, BLOCK)))

    def __len__(self) -> int:
        return int(self._before[-1])

    def without(self, others: Bitmap) -> Bitmap:
        """Those that are not in another set of the same limit."""
        return Bitmap(self._bits & ~others._bits)

    def rank(self, number: int) -> int:
        """How many of the set are smaller than a number."""
        block, rest = divmod(number, BLOCK)
        return int(self._before[block]) + int(self._open(block, block + 1)[:rest].sum())

    def take(self, first: int, last: int) -> Codes:
        """Those from one place to another, rising."""
        start, stop = int(np.searchsorted(self._before, first, side="right")) - 1, int(np.searchsorted(self._before, last))
        skipped = int(self._before[start])
        return np.flatnonzero(self._open(start, stop))[first - skipped : last - skipped] + start * BLOCK

    def _open(self, start: int, stop: int) -> Bits:
        """The bits of some blocks, a byte each."""
        return np.unpackbits(self._bits[start * BLOCK // 8 : stop * BLOCK // 8])
