"""Kinds of cells: what loads the same weights and may share a batch. Checks and order go by kinds, of which there are few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdbatch.errors import ConfigError
from sdbatch.plan.axis import Codes, Points
from sdbatch.plan.draft import Draft
from sdbatch.plan.part import Parts
from sdbatch.plan.tree import get


@dataclass(frozen=True)
class Kinds:
    """The parts of a sweep whose cells are of one kind, without those that are left out."""

    parts: Parts
    numbers: Codes
    """The parts that are kept, rising."""
    points: Points
    """The first cell of each."""
    group: Codes
    """The configuration of each."""


def divide(draft: Draft, keys: Sequence[str]) -> Kinds:
    """The kinds of a draft, by its choices, these of its columns and what it leaves out. Raises ConfigError when that is all."""
    parts = draft.apart.finer(draft.columns[key] for key in keys)
    every = np.arange(len(parts))
    numbers = every[~draft.excluded(parts.points(every))]
    if not len(numbers):
        raise ConfigError("matrix.exclude: leaves out every cell, so there is nothing to make.")
    points = parts.points(numbers)
    return Kinds(parts, numbers, points, draft.choices.at(points))


def iter_values(draft: Draft, keys: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Each configuration that has cells, with the values that some keys have together in them, each once."""
    swept = [key for key in keys if key in draft.columns]
    kinds = divide(draft, swept)
    table = np.stack([kinds.group, *(draft.columns[key].at(kinds.points) for key in swept)], axis=1)
    for group, *codes in np.unique(table, axis=0).tolist():
        own = {key: draft.columns[key].values[code] for key, code in zip(swept, codes, strict=True) if code >= 0}
        yield group, tuple(own[key] if key in own else get(draft.groups[group], key) for key in keys)
