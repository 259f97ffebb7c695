"""Cells that make the same image: two values that mean the same, two files of the same content."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from sdbatch.plan.axis import Codes
from sdbatch.results.ids import IdArray

COMPARED_CELLS = 32_000_000
"""So many are compared at a time, by half of their id: 256 MB. Of more, all ids are computed several times over."""

Slices = Callable[[], Iterator[tuple[Codes, Codes, IdArray]]]
"""All cells: their places in the plan (rising), their places as written, and their ids."""


def find_repeated(cells: int, slices: Slices) -> Iterator[Codes]:
    """The places of cells whose image is that of one written before, in stretches that rise."""
    passes = -(-cells // COMPARED_CELLS)
    return (_find(cells, slices, number, passes) for number in range(passes))


def _find(cells: int, slices: Slices, number: int, passes: int) -> Codes:
    """Of the ids with one remainder."""
    halves = np.empty(cells // passes + cells // (passes * 50) + 1_000 if passes > 1 else cells, dtype=np.uint64)
    count = 0
    for _, _, ids in slices():
        own = ids[ids[:, 0] % np.uint64(passes) == number, 0] if passes > 1 else ids[:, 0]
        halves[count : count + len(own)] = own
        count += len(own)
    halves = halves[:count]
    halves.sort()
    twice = halves[1:][halves[1:] == halves[:-1]]
    del halves
    return _all_but_first(twice, slices) if len(twice) else np.empty(0, np.int64)


def _all_but_first(twice: npt.NDArray[np.uint64], slices: Slices) -> Codes:
    """The places of all but the first-written cell of each id, of those ids whose first half is one of `twice` (sorted)."""
    found: list[tuple[Codes, Codes, IdArray]] = []
    for places, written, ids in slices():
        near = np.minimum(np.searchsorted(twice, ids[:, 0]), len(twice) - 1)
        chosen = np.flatnonzero(twice[near] == ids[:, 0])
        found.append((places[chosen], written[chosen], ids[chosen]))
    places, written, ids = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((written, ids[:, 1], ids[:, 0]))
    same = (ids[order][1:] == ids[order][:-1]).all(axis=1)
    return np.sort(places[order[1:][same]])
