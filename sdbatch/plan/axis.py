"""Axes of a sweep, as written and as expanded into index arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdbatch.errors import ConfigError

Codes = npt.NDArray[np.int64]


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
class Space:
    """All axes of a sweep; the last one varies fastest."""

    axes: tuple[Axis, ...]
    intervals: tuple[Interval, ...] = ()
    draws: Draws | None = None

    def __len__(self) -> int:
        """Number of points of the whole product."""
        return int(np.prod([len(axis) for axis in self.axes], dtype=object)) if self.axes else 1

    def expand(self) -> tuple[list[Axis], list[Codes]]:
        """The axes, and for each the index of its value at every point. Intervals become axes of drawn values.

        Raises ConfigError for an interval without draws, or for more draws than there are points.
        """
        if self.draws is None:
            if self.intervals:
                raise ConfigError(f"{self.intervals[0].key}: an interval has no end. Set matrix.draws=N to draw N points at random.")
            return list(self.axes), _product([len(axis) for axis in self.axes])
        rng = np.random.default_rng(self.draws.seed)
        codes = self._draw(self.draws, rng)
        axes = list(self.axes)
        for interval in self.intervals:
            axes.append(Axis.single(interval.key, rng.uniform(interval.low, interval.high, self.draws.count).round(4).tolist()))
            codes.append(np.arange(self.draws.count))
        return axes, codes

    def _draw(self, draws: Draws, rng: np.random.Generator) -> list[Codes]:
        """Distinct points of the discrete axes (with intervals, every draw differs anyway)."""
        sizes = [len(axis) for axis in self.axes]
        if self.intervals:
            return [rng.integers(0, size, draws.count) for size in sizes]
        if draws.count > len(self):
            raise ConfigError(f"matrix.draws={draws.count}: the matrix has only {len(self)} distinct points. Draw fewer, or add values.")
        if len(self) <= 4 * draws.count:
            return list(np.unravel_index(rng.permutation(len(self))[: draws.count], sizes)) if sizes else []
        seen: dict[tuple[int, ...], None] = {}
        while len(seen) < draws.count:
            batch = np.stack([rng.integers(0, size, draws.count) for size in sizes], axis=1)
            for point in map(tuple, batch.tolist()):
                if len(seen) < draws.count:
                    seen[point] = None
        return list(np.array(list(seen), dtype=np.int64).T)


def _product(sizes: Sequence[int]) -> list[Codes]:
    if not sizes:
        return []
    count = int(np.prod(sizes, dtype=np.int64))
    return list(np.unravel_index(np.arange(count), tuple(sizes)))


def distinct(values: Sequence[Any]) -> tuple[list[Any], Codes]:
    """Distinct values in order of first appearance, and the code of each value. Equal means equal as JSON, types included."""
    if isinstance(values, range):
        return list(values), np.arange(len(values))
    found: dict[Any, int] = {}
    codes = np.empty(len(values), dtype=np.int64)
    for index, value in enumerate(values):
        codes[index] = found.setdefault(_hashable(value), len(found))
    first = np.full(len(found), -1, dtype=np.int64)
    for index in range(len(values) - 1, -1, -1):
        first[codes[index]] = index
    return [values[index] for index in first.tolist()], codes


def _hashable(value: Any) -> Any:
    return (type(value).__name__, value if isinstance(value, str | int | float | bool | None) else repr(value))


def iter_keys(axes: Sequence[Axis]) -> Iterator[tuple[int, int, str]]:
    """(axis, column, key) of every key."""
    for position, axis in enumerate(axes):
        for column, key in enumerate(axis.keys):
            yield position, column, key
