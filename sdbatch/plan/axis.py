"""Axes of a sweep: as written, and as columns of values over their points. The product of axes is never written out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sdbatch.errors import ConfigError

Codes = npt.NDArray[np.int64]
Points = Sequence[Codes]
"""Some cells: of each axis, the point at which each cell is."""

CELLS_LIMIT = 10**10
"""More than anybody makes: a slip of the pen, not a sweep."""


class Unset:
    """Marks a point of an axis that leaves a key as it is."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


@dataclass(frozen=True)
class Axis:
    """Keys that advance together: one column of values per key, all of one length."""

    keys: tuple[str, ...]
    columns: tuple[Sequence[Any], ...]
    """Per key its value at each point; UNSET where the point does not set it."""

    def __len__(self) -> int:
        return len(self.columns[0])

    @classmethod
    def single(cls, key: str, values: Sequence[Any]) -> Axis:
        """One key."""
        return cls((key,), (values,))

    @classmethod
    def points(cls, items: Sequence[Mapping[str, Any]]) -> Axis:
        """Explicit points, each with its own keys."""
        keys = tuple(dict.fromkeys(key for item in items for key in item))
        return cls(keys, tuple([item.get(key, UNSET) for item in items] for key in keys))


@dataclass(frozen=True)
class Interval:
    """A continuous range, which only random draws can sample."""

    key: str
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """N random points in place of the whole product."""

    count: int
    seed: int


@dataclass(frozen=True)
class Column:
    """The values of one swept key."""

    axis: int
    """The number of its axis."""
    values: Sequence[Any]
    """Its distinct values. A range stays one: a hundred million seeds cost nothing."""
    codes: Codes | None
    """Of each point of the axis the place of its value, -1 where it is left as composed; None: point n has value n."""

    def at(self, points: Points) -> Codes:
        """The place of each cell's value."""
        own = points[self.axis]
        return own if self.codes is None else self.codes[own]

    @property
    def is_everywhere(self) -> bool:
        """Whether every point of the axis sets the key."""
        return self.codes is None or bool((self.codes >= 0).all())


@dataclass(frozen=True)
class Space:
    """All axes of a sweep; the last one varies fastest."""

    axes: tuple[Axis, ...]
    intervals: tuple[Interval, ...] = ()
    draws: Draws | None = None

    def __len__(self) -> int:
        """Number of points of the whole product."""
        return math.prod(map(len, self.axes))

    def expand(self) -> tuple[tuple[int, ...], dict[str, Column]]:
        """The length of each axis, and the column of each key. Random draws make one long axis of all keys.

        Raises ConfigError for an interval without draws, for more draws than there are points, and for a slip of the pen.
        """
        if self.draws is not None:
            return (self.draws.count,), self._draw(self.draws)
        if self.intervals:
            raise ConfigError(f"{self.intervals[0].key}: an interval has no end. Set matrix.draws=N to draw N points at random.")
        if len(self) > CELLS_LIMIT:
            sizes = " x ".join(f"{len(axis)} of {', '.join(axis.keys)}" for axis in self.axes)
            raise ConfigError(f"matrix: {len(self):.3g} images are more than can be made ({sizes}). Set matrix.draws=N to draw N of them.")
        columns = {key: column_of(number, values) for number, axis in enumerate(self.axes) for key, values in _items(axis)}
        return tuple(map(len, self.axes)) or (1,), columns

    def _draw(self, draws: Draws) -> dict[str, Column]:
        rng = np.random.default_rng(draws.seed)
        columns: dict[str, Column] = {}
        for axis, drawn in zip(self.axes, self._draw_points(draws, rng), strict=True):
            for key, values in _items(axis):
                column = column_of(0, values)
                columns[key] = Column(0, column.values, column.at([drawn]))
        for interval in self.intervals:
            columns[interval.key] = column_of(0, rng.uniform(interval.low, interval.high, draws.count).round(4))
        return columns

    def _draw_points(self, draws: Draws, rng: np.random.Generator) -> Points:
        """Distinct points of the discrete axes (with intervals, every draw differs anyway)."""
        sizes = [len(axis) for axis in self.axes]
        if self.intervals:
            return [rng.integers(0, size, draws.count) for size in sizes]
        if draws.count > len(self):
            raise ConfigError(f"matrix.draws={draws.count}: the matrix has only {len(self)} distinct points. Draw fewer, or add values.")
        if len(self) <= 4 * draws.count:
            return list(np.unravel_index(rng.permutation(len(self))[: draws.count], sizes)) if sizes else []
        found: Points = [np.empty(0, np.int64) for _ in sizes]
        while len(found[0]) < draws.count:
            more = [np.concatenate([old, rng.integers(0, size, draws.count)]) for old, size in zip(found, sizes, strict=True)]
            first = number_rows(more)[1][: draws.count]
            found = [codes[first] for codes in more]
        return found


def _items(axis: Axis) -> zip[tuple[str, Sequence[Any]]]:
    return zip(axis.keys, axis.columns, strict=True)


def column_of(axis: int, values: Sequence[Any] | npt.NDArray[np.float64]) -> Column:
    """The column of an axis with these values, point by point. Equal means equal as JSON, types included."""
    if isinstance(values, range):
        return Column(axis, values, None)
    if isinstance(values, np.ndarray):
        codes, first = number_rows([np.unique(values, return_inverse=True)[1]])
        return Column(axis, cast(list[Any], values[first].tolist()), codes)
    places: dict[Any, int] = {UNSET: -1}
    found: list[Any] = []
    codes = np.empty(len(values), dtype=np.int64)
    for point, value in enumerate(values):
        known = places.setdefault(_hashable(value), len(found))
        if known == len(found):
            found.append(value)
        codes[point] = known
    return Column(axis, found, codes)


def _hashable(value: Any) -> Any:
    if value is UNSET:
        return UNSET
    return (type(value).__name__, value if isinstance(value, str | int | float | bool | None) else repr(value))


def number_rows(columns: Sequence[Codes]) -> tuple[Codes, Codes]:
    """The number of each row, and the first place of each number; equal rows have one, in order of first appearance."""
    number, first = np.zeros(len(columns[0]), dtype=np.int64), np.zeros(1, dtype=np.int64)
    for codes in columns:
        low = int(codes.min())
        _, first, number = np.unique(number * (int(codes.max()) - low + 1) + (codes - low), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[number], first[order]
