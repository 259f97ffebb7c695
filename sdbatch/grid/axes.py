"""Which parameters make the columns, rows and sections of a grid, and in which order their values stand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.grid.entry import Entry, Value, label

MOST_SECTIONS = 8
"""A third axis is chosen by itself only up to so many values; above, its first value is shown and the footer says so."""

MOST_CANDIDATES = 6
"""So many of the best-ranked parameters are tried as axes."""

TEXT_KEYS = frozenset({"prompt", "negative_prompt"})
UNUSED = frozenset({"", "none"})
"""What to type for an axis that must stay empty: `y=none`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter with the values it takes, in the order in which they are drawn."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """A comparison: what varies where, and what is held."""

    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None
    held: tuple[Axis, ...] = ()
    """Parameters that differ among the images but have no place in the grid: their first value is shown."""
    followers: tuple[str, ...] = ()
    """Parameters that differ, but only together with those in the grid: they are written below each image."""
    constants: Mapping[str, Value] = field(default_factory=dict[str, Value])
    """Parameters that are the same for all images."""

    @property
    def used(self) -> tuple[Axis, ...]:
        """The axes that are drawn, x first."""
        return tuple(axis for axis in (self.x, self.y, self.z) if axis)


def choose_axes(entries: Sequence[Entry], x: str | None = None, y: str | None = None, z: str | None = None) -> Axes:
    """Complete the axes that were asked for with the parameters that differ.

    `None` lets the function choose, `none` leaves that axis empty. Chosen by itself: parameters before prompts before
    seeds, those with most values first; a prompt becomes the rows, where there is room for text.

    Raises: ConfigError for a parameter that no image has, or one asked for twice.
    """
    known = collect_values(entries)
    differing = find_differing(entries, known)
    asked = {place: key for place, key in (("x", x), ("y", y), ("z", z)) if key is not None and key not in UNUSED}
    _check_asked(asked, known, differing)
    free = [place for place, key in (("x", x), ("y", y), ("z", z)) if key is None]
    added = choose_keys(entries, differing, list(asked.values()), free)
    placed = asked | _place(added, free, differing)
    shown = {place: Axis(key, known[key]) for place, key in placed.items()}
    rest = [key for key in rank_keys(differing) if key not in placed.values()]
    settled = find_settled(entries, list(placed.values()), rest)
    return Axes(
        shown.get("x"),
        shown.get("y"),
        shown.get("z"),
        held=tuple(Axis(key, differing[key]) for key in rest if key not in settled),
        followers=tuple(key for key in rest if key in settled),
        constants={key: values[0] for key, values in known.items() if len(values) == 1 and key not in placed.values()},
    )


def collect_values(entries: Iterable[Entry]) -> dict[str, tuple[Value, ...]]:
    """Every parameter with its distinct values, in drawing order. A parameter that only some images have has none (`None`) too."""
    rows = list(entries)
    found: dict[str, dict[Value, None]] = {}
    for entry in rows:
        for key, value in entry.values.items():
            found.setdefault(key, {})[value] = None
    for key, values in found.items():
        if any(key not in entry.values for entry in rows):
            values[None] = None
    return {key: sort_values(values) for key, values in found.items()}


def find_differing(entries: Sequence[Entry], known: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
    """The declared axes that take several values; without any, all parameters that do.

    What a sweep declares comes first because much else follows from it: with `checkpoint` the family changes as well,
    and nobody wants that as an axis of its own.
    """
    declared = list(dict.fromkeys(key for entry in entries for key in entry.axes))
    chosen = {key: known[key] for key in declared if len(known.get(key, ())) > 1}
    return chosen or _drop_followers(entries, {key: values for key, values in known.items() if len(values) > 1})


def _drop_followers(entries: Sequence[Entry], differing: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
    """Of parameters that change together (a checkpoint and its family) keep the first."""
    kept: dict[tuple[int, ...], str] = {}
    for key in differing:
        place = {value: number for number, value in enumerate(dict.fromkeys(entry.values.get(key) for entry in entries))}
        kept.setdefault(tuple(place[entry.values.get(key)] for entry in entries), key)
    return {key: differing[key] for key in kept.values()}


def choose_keys(entries: Sequence[Entry], differing: Mapping[str, Sequence[Value]], asked: Sequence[str], free: Sequence[str]) -> list[str]:
    """The keys to add on the free axes: as many as make a grid that is not mostly holes, best-ranked first.

    Random draws and zipped lists have no such grid; they are shown image by image along the key with most values.
    """
    ranked = [key for key in rank_keys(differing) if key not in asked][:MOST_CANDIDATES]
    for count in range(min(len(free), len(ranked)), 0, -1):
        for added in itertools.combinations(ranked, count):
            makes_sections = "z" in free and len(asked) + count >= 3
            if makes_sections and len(differing[added[-1]]) > MOST_SECTIONS:
                continue
            if is_readable(entries, differing, [*asked, *added]):
                return list(added)
    return [max(ranked, key=lambda key: len(differing[key]))] if ranked and free and not asked else []


def is_readable(entries: Sequence[Entry], differing: Mapping[str, Sequence[Value]], keys: Sequence[str]) -> bool:
    """Whether most of the cells that these axes span have an image, and no axis just repeats another."""
    rest = [key for key in differing if key not in keys]
    settled = find_settled(entries, keys, rest)
    held = {key: differing[key][0] for key in rest if key not in settled}
    shown = [entry for entry in entries if all(entry.values.get(key) == value for key, value in held.items())]
    sizes = [len({entry.values.get(key) for entry in entries}) for key in keys]
    for one, other in itertools.combinations(range(len(keys)), 2):
        pairs = {(entry.values.get(keys[one]), entry.values.get(keys[other])) for entry in entries}
        if min(sizes[one], sizes[other]) > 1 and len(pairs) <= max(sizes[one], sizes[other]):
            return False
    return 2 * len({_place_of(entry, keys) for entry in shown}) > math.prod(sizes)


def find_settled(entries: Iterable[Entry], keys: Sequence[str], rest: Sequence[str]) -> set[str]:
    """Which of the other parameters have one value at every place of the grid."""
    open_keys = set(rest)
    seen: dict[tuple[Value, ...], Entry] = {}
    for entry in entries:
        first = seen.setdefault(_place_of(entry, keys), entry)
        open_keys -= {key for key in open_keys if entry.values.get(key) != first.values.get(key)}
    return open_keys


def rank_keys(differing: Mapping[str, Sequence[Value]]) -> list[str]:
    """Most telling first: parameters, then prompts, then seeds; among equals the one with more values."""
    order = {key: place for place, key in enumerate(differing)}
    return sorted(differing, key=lambda key: (_kind(key), -len(differing[key]), order[key]))


def sort_values(values: Iterable[Value]) -> tuple[Value, ...]:
    """Numbers by size, anything else in the order of the plan; `None` comes first."""
    items = list(values)
    present = [value for value in items if value is not None]
    numeric = [value for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    ordered: list[Value] = [*sorted(numeric)] if len(numeric) == len(present) else [*present]
    return tuple([None, *ordered] if len(present) < len(items) else ordered)


def _kind(key: str) -> int:
    if key in TEXT_KEYS:
        return 1
    return 2 if key == "seed" else 0


def _place_of(entry: Entry, keys: Sequence[str]) -> tuple[Value, ...]:
    return tuple(entry.values.get(key) for key in keys)


def _place(added: Sequence[str], free: Sequence[str], differing: Mapping[str, Sequence[Value]]) -> dict[str, str]:
    """Put the chosen keys on the free axes: columns and rows first, then sections."""
    flat = [place for place in ("x", "y") if place in free]
    first = list(added[: len(flat)])
    if len(first) == 2 and _reads_better_as_row(first[0], first[1], differing):
        first.reverse()
    placed = dict(zip(flat, first, strict=False))
    left = list(added[len(first) :])
    return placed | ({"z": left[0]} if left and "z" in free else {})


def _reads_better_as_row(first: str, second: str, differing: Mapping[str, Sequence[Value]]) -> bool:
    """True when `first` should be the rows: it is text, or names where `second` is numbers."""
    if first in TEXT_KEYS or second in TEXT_KEYS:
        return first in TEXT_KEYS
    return second != "seed" and _is_numeric(differing[second]) and not _is_numeric(differing[first])


def _is_numeric(values: Sequence[Value]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _check_asked(asked: Mapping[str, str], known: Mapping[str, object], differing: Mapping[str, Sequence[Value]]) -> None:
    for place, key in asked.items():
        if key not in known:
            raise ConfigError(f"grid {place}={key}: no image has a parameter {key!r}. {did_you_mean(key, known)} {_list(differing)}")
    repeated = next((key for key in asked.values() if list(asked.values()).count(key) > 1), None)
    if repeated is not None:
        places = " and ".join(place for place, key in asked.items() if key == repeated)
        raise ConfigError(f"grid: {places} are both {repeated!r}; each axis needs its own parameter. {_list(differing)}")


def _list(differing: Mapping[str, Sequence[Value]]) -> str:
    if not differing:
        return "No parameter differs among these images."
    return "Parameters that differ: " + ", ".join(f"{key} ({_sample(values)})" for key, values in differing.items()) + "."


def _sample(values: Sequence[Value]) -> str:
    shown = ", ".join(text if len(text := label(value)) <= 24 else text[:23] + "…" for value in values[:3])
    return shown if len(values) <= 3 else f"{shown}, ... {len(values)} values"
