"""The ids of the images of some cells at a time: what is constant is summed once per configuration, values once per column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdbatch.plan.axis import Codes, Points
from sdbatch.plan.draft import Draft
from sdbatch.plan.identity import FILE_LEAVES, Lanes, by_content, canonical, column_lanes, config_lanes, leaves
from sdbatch.plan.tree import get
from sdbatch.results.ids import IdArray

TABLE_VALUES = 16_000_000
"""A column of more values is hashed again for each slice of cells: a table of it would take 16 bytes a value."""


class ImageIds:
    """The ids of the cells of a draft, as `sdbatch.plan.identity` defines them."""

    def __init__(self, draft: Draft, defaults: Mapping[str, Any], digests: Mapping[tuple[str, str], str]) -> None:
        varying = set(draft.columns)
        self._draft = draft
        self._constant = np.array([config_lanes(plain, defaults, digests, varying) for plain in draft.groups], dtype=np.uint64)
        self._variants: dict[str, tuple[Codes, list[_Variant]]] = {}
        """Of each column the variant of each configuration (-1: it lacks the key), and the variants."""
        keys = [{key: (path, pattern) for key, path, pattern in leaves(plain, defaults)} for plain in draft.groups]
        for key, column in draft.columns.items():
            found: dict[str, int] = {}
            variants: list[_Variant] = []
            of_group = np.full(len(draft.groups), -1, dtype=np.int64)
            for group, (plain, known) in enumerate(zip(draft.groups, keys, strict=True)):
                if key not in known:
                    continue
                path, pattern = known[key]
                # The value as composed is only asked for where a point leaves it.
                own = None if column.is_everywhere else by_content(pattern, get(plain, key), digests)
                of_group[group] = found.setdefault(f"{path}={canonical(own)}", len(variants))
                if of_group[group] == len(variants):
                    variants.append(_Variant(path, pattern, column.values, own, defaults[pattern], digests))
            self._variants[key] = (of_group, variants)

    def at(self, points: Points) -> IdArray:
        """The ids of some cells."""
        group = self._draft.choices.at(points)
        total = self._constant[group]
        for key, (of_group, variants) in self._variants.items():
            codes = self._draft.columns[key].at(points)
            if len(variants) == 1 and bool((of_group == 0).all()):
                total += variants[0].lanes(codes)
                continue
            which = of_group[group]
            for number, variant in enumerate(variants):
                if (chosen := np.flatnonzero(which == number)).size:
                    total[chosen] += variant.lanes(codes[chosen])
        return total.byteswap()


class _Variant:
    """The lanes of a column's values at one path, and of the value that a configuration has of its own."""

    def __init__(
        self, path: str, pattern: str, values: Sequence[Any], own: Any, neutral: Any, digests: Mapping[tuple[str, str], str]
    ) -> None:
        self._path, self._pattern, self._values, self._neutral, self._digests = path, pattern, values, neutral, digests
        self._own = column_lanes(path, [own], neutral)
        self._table = np.concatenate([self._hash(values), self._own]) if len(values) <= TABLE_VALUES else None

    def _hash(self, values: Sequence[Any]) -> Lanes:
        content = [by_content(self._pattern, value, self._digests) for value in values] if self._pattern in FILE_LEAVES else values
        return column_lanes(self._path, content, self._neutral)

    def lanes(self, codes: Codes) -> Lanes:
        """The lanes of these values; -1 is the last of the table."""
        if self._table is not None:
            return self._table[codes]
        used, place = np.unique(codes, return_inverse=True)
        hashed = self._hash([self._values[code] for code in used.tolist() if code >= 0])
        return (np.concatenate([self._own, hashed]) if used[0] < 0 else hashed)[place]
