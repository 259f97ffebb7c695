"""Which parameters make a grid without holes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from sdbatch.grid.entry import IMAGE, TEXT_KEYS, Entry, Value

MOST_SECTIONS = 8
"""A third axis is chosen by itself only up to so many values; above, its first value is shown and the footer says so."""

MOST_CANDIDATES = 6
"""So many of the best-ranked parameters are tried as axes."""


def rank_keys(differing: Mapping[str, Sequence[Value]]) -> list[str]:
    """Most telling first: parameters, then prompts, then seeds; among equals the one with more values."""
    order = {key: place for place, key in enumerate(differing)}
    return sorted(differing, key=lambda key: (_kind(key), -len(differing[key]), order[key]))


def choose_keys(entries: Sequence[Entry], differing: Mapping[str, Sequence[Value]], asked: Sequence[str], free: Sequence[str]) -> list[str]:
    """The keys to add on the free axes: as many as make a grid that is not mostly holes, best-ranked first.

    Random draws have no such grid: they are shown image by image.
    """
    ranked = [key for key in rank_keys(differing) if key not in asked][:MOST_CANDIDATES]
    for count in range(min(len(free), len(ranked)), 0, -1):
        for added in itertools.combinations(ranked, count):
            makes_sections = "z" in free and len(asked) + count >= 3
            if makes_sections and len(differing[added[-1]]) > MOST_SECTIONS:
                continue
            if is_readable(entries, differing, [*asked, *added]):
                return list(added)
    return [IMAGE] if ranked and free and not asked else []


def is_readable(entries: Sequence[Entry], differing: Mapping[str, Sequence[Value]], keys: Sequence[str]) -> bool:
    """Whether most of the cells that these axes span have an image, and no axis just repeats another."""
    shown = hold(entries, differing, keys)[1]
    sizes = [len({entry.values.get(key) for entry in entries}) for key in keys]
    for one, other in itertools.combinations(range(len(keys)), 2):
        pairs = {(entry.values.get(keys[one]), entry.values.get(keys[other])) for entry in entries}
        if min(sizes[one], sizes[other]) > 1 and len(pairs) <= max(sizes[one], sizes[other]):
            return False
    return 2 * len({_place_of(entry, keys) for entry in shown}) > math.prod(sizes)


def hold(
    entries: Sequence[Entry], differing: Mapping[str, Sequence[Value]], keys: Sequence[str]
) -> tuple[dict[str, Value], Sequence[Entry]]:
    """The values at which parameters outside of the grid are held, and the images that have them: never none."""
    rest = [key for key in rank_keys(differing) if key not in keys]
    settled = find_settled(entries, keys, rest)
    held: dict[str, Value] = {}
    for key in rest:
        if key not in settled:
            present = {entry.values.get(key) for entry in entries}
            held[key] = next(value for value in differing[key] if value in present)
            entries = [entry for entry in entries if entry.values.get(key) == held[key]]
    return held, entries


def find_settled(entries: Iterable[Entry], keys: Sequence[str], rest: Sequence[str]) -> set[str]:
    """Which of the other parameters have one value at every place of the grid."""
    open_keys = set(rest)
    seen: dict[tuple[Value, ...], Entry] = {}
    for entry in entries:
        first = seen.setdefault(_place_of(entry, keys), entry)
        open_keys -= {key for key in open_keys if entry.values.get(key) != first.values.get(key)}
    return open_keys


def _place_of(entry: Entry, keys: Sequence[str]) -> tuple[Value, ...]:
    return tuple(entry.values.get(key) for key in keys)


def _kind(key: str) -> int:
    if key in TEXT_KEYS:
        return 1
    return 2 if key == "seed" else 0
