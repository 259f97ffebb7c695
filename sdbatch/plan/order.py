"""The cells of a sweep in the order of a plan, by index arithmetic: any stretch of it is computed without the rest.

Cells of one class (the same weights, the same batches) come together; within a class they keep the order in which they are
written. So `seed=1,2,3 width=64,128` is the order 1x64 2x64 3x64 1x128 2x128 3x128: the class at which a place lies says
64 or 128, and what is left of the place is the number of the seed.

A class is a set of parts of the space (`Parts`), and each part a product of subsets of the axes. So its cells are counted
and found axis by axis, as the digits of a number whose bases depend on the digits before: a tree with a level for each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sdbatch.plan.axis import Codes, Points
from sdbatch.plan.part import Parts


@dataclass(frozen=True)
class _Node:
    """What one set of parts takes of an axis and all after it."""

    count: int
    """Cells."""
    points: Codes | None = None
    """The points of the axis, rising; None: all."""
    below: tuple[_Node, ...] = ()
    """What is below each point; one, where it is the same for all."""
    which: Codes = field(default_factory=lambda: np.empty(0, np.int64))
    """Of each point, which of `below`."""
    starts: Codes = field(default_factory=lambda: np.empty(0, np.int64))
    """Of each point, how many cells come before it."""


class Order:
    """All cells of some classes of parts, class by class."""

    def __init__(self, parts: Parts, classes: Sequence[Codes]) -> None:
        """`classes` are the numbers of the parts of each class, rising."""
        self._parts = parts
        self._axes = len(parts.sizes)
        self._strides = [int(np.prod(parts.counts[axis + 1 :], dtype=np.int64)) for axis in range(self._axes)]
        self._nodes: dict[tuple[int, bytes], _Node] = {}
        self._roots = [self._node(0, numbers) for numbers in classes]
        self._nodes.clear()
        self.starts: Codes = np.concatenate([[0], np.cumsum([root.count for root in self._roots], dtype=np.int64)])
        """Where each class begins; the last is the number of all cells."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _node(self, axis: int, parts: Codes) -> _Node:
        if axis == self._axes:
            return _Node(1)
        key = (axis, parts.tobytes())
        if key not in self._nodes:
            self._nodes[key] = self._branch(axis, parts)
        return self._nodes[key]

    def _branch(self, axis: int, parts: Codes) -> _Node:
        subset, rest = np.divmod(parts, self._strides[axis])
        subsets, begins = np.unique(subset, return_index=True)
        below = [self._node(axis + 1, part) for part in np.split(rest, begins[1:])]
        points = self._parts.members(axis, subsets)
        count = self._parts.sizes[axis] if points is None else len(points)
        if all(node is below[0] for node in below):
            return _Node(count * below[0].count, points, (below[0],))
        of_point = self._parts.subsets[axis]
        assert of_point is not None
        which = np.searchsorted(subsets, of_point if points is None else of_point[points])
        counts = np.array([node.count for node in below], dtype=np.int64)[which]
        ends = np.cumsum(counts)
        return _Node(int(ends[-1]), points, tuple(below), which, ends - counts)

    def class_of(self, places: Codes) -> Codes:
        """The class of each cell; places rise."""
        begins = np.searchsorted(places, self.starts)
        return np.repeat(np.arange(len(self._roots)), np.diff(begins))

    def at(self, places: Codes) -> Points:
        """The cells at these places of the order, which rise."""
        found: list[Codes] = [np.empty(len(places), dtype=np.int64) for _ in range(self._axes)]
        begins = np.searchsorted(places, self.starts)
        for number in np.flatnonzero(np.diff(begins)).tolist():
            own = slice(begins[number], begins[number + 1])
            for codes, part in zip(found, self._walk(self._roots[number], 0, places[own] - self.starts[number]), strict=True):
                codes[own] = part
        return found

    def _walk(self, node: _Node, axis: int, rest: Codes) -> list[Codes]:
        """The points of the cells with these numbers below a node, from its axis on."""
        if axis == self._axes:
            return []
        if len(node.below) == 1:
            place, rest = np.divmod(rest, node.below[0].count)
            return [place if node.points is None else node.points[place], *self._walk(node.below[0], axis + 1, rest)]
        place = np.searchsorted(node.starts, rest, side="right") - 1
        rest, which = rest - node.starts[place], node.which[place]
        after: list[Codes] = [np.empty(len(rest), dtype=np.int64) for _ in range(axis + 1, self._axes)]
        for number in np.unique(which).tolist():
            chosen = which == number
            for codes, part in zip(after, self._walk(node.below[number], axis + 1, rest[chosen]), strict=True):
                codes[chosen] = part
        return [place if node.points is None else node.points[place], *after]
