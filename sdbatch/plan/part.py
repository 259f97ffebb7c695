"""The space of a sweep, divided by what some of its columns say.

Three seeds, two widths and two LoRAs are twelve cells. Divided by the LoRA they are two parts of six cells; by LoRA and width
four of three. A hundred million seeds make no more parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sdbatch.plan.axis import Codes, Column, Points, number_rows


@dataclass(frozen=True)
class Parts:
    """Parts of a space in each of which some columns have one value: each is a product of one subset of every axis.

    However many cells there are, the parts are few, and what holds for one cell of a part holds for all.
    """

    sizes: tuple[int, ...]
    """Points of each axis."""
    subsets: tuple[Codes | None, ...]
    """Of each axis, the subset that each point is in, numbered by first appearance; None: one subset."""
    first: tuple[Codes, ...]
    """Of each axis, the first point of each subset."""

    @classmethod
    def of(cls, sizes: tuple[int, ...], columns: Iterable[Column]) -> Parts:
        """The coarsest parts in which these columns do not vary."""
        return cls(sizes, (None,) * len(sizes), (np.zeros(1, dtype=np.int64),) * len(sizes)).finer(columns)

    def finer(self, columns: Iterable[Column]) -> Parts:
        """These parts, divided by further columns."""
        by_axis: dict[int, list[Codes]] = {}
        for column in columns:
            codes = np.arange(self.sizes[column.axis]) if column.codes is None else column.codes
            by_axis.setdefault(column.axis, []).append(codes)
        subsets, first = list(self.subsets), list(self.first)
        for axis, codes in by_axis.items():
            own = subsets[axis]
            subsets[axis], first[axis] = number_rows(codes if own is None else [own, *codes])
        return Parts(self.sizes, tuple(subsets), tuple(first))

    @property
    def counts(self) -> tuple[int, ...]:
        """Subsets of each axis."""
        return tuple(map(len, self.first))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def at(self, points: Points) -> Codes:
        """The part of each cell. Parts are numbered as they first appear."""
        number = np.zeros(len(points[0]), dtype=np.int64)
        for subsets, first, own in zip(self.subsets, self.first, points, strict=True):
            if subsets is not None:
                number *= len(first)
                number += subsets[own]
        return number

    def split(self, parts: Codes) -> Points:
        """Of each part, the subset of each axis."""
        return list(np.unravel_index(parts, self.counts))

    def points(self, parts: Codes) -> Points:
        """Of each part, its first cell."""
        return [first[subset] for first, subset in zip(self.first, self.split(parts), strict=True)]

    @cached_property
    def _sorted(self) -> dict[int, tuple[Codes, Codes]]:
        """Of each axis with several subsets, its points by subset, and where each subset begins."""
        return {
            axis: (np.argsort(subsets, kind="stable"), np.searchsorted(np.sort(subsets), np.arange(len(first) + 1)))
            for axis, (subsets, first) in enumerate(zip(self.subsets, self.first, strict=True))
            if subsets is not None
        }

    def members(self, axis: int, subsets: Codes) -> Codes | None:
        """The points of some subsets of an axis, rising; None when it is all of them."""
        if len(subsets) == len(self.first[axis]):
            return None
        order, begins = self._sorted[axis]
        found = [order[begins[subset] : begins[subset + 1]] for subset in subsets.tolist()]
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))
