"""Which parameters make the columns, rows and sections of a grid, and in which order their values stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.grid.candidate import choose_keys, hold, rank_keys
from sdbatch.grid.entry import IMAGE, SWEEP, TEXT_KEYS, Entry, Value, label

LONG = 24
"""Letters that many headers need not repeat."""

UNUSED = frozenset({"", "none"})
"""What to type for an axis that must stay empty: `y=none`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter with the values it takes, in the order in which they are drawn."""

    key: str
    values: tuple[Value, ...]
    head: str = ""
    """How the texts of all its values begin: told once below the grid, where a header has no room for what differs."""
    tail: str = ""
    """How they end."""

    def label(self, value: Value) -> str:
        """What stands at a column, row or section."""
        text = label(value)
        if not self.head and not self.tail:
            return text
        return f"{'… ' if self.head else ''}{text[len(self.head) : len(text) - len(self.tail)].strip()}{' …' if self.tail else ''}"


@dataclass(frozen=True, slots=True)
class Axes:
    """A comparison: what varies where, and what is held."""

    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None
    held: tuple[Axis, ...] = ()
    """Parameters that differ among the images but have no place in the grid: the first value here is the one shown."""
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
    held, shown = hold(entries, differing, list(placed.values()))
    followers = tuple(key for key in rank_keys(differing) if key not in held and key not in placed.values())

    def axis(place: str) -> Axis | None:
        """Only with values that some image shown has: the rest would be a row of holes."""
        if place not in placed:
            return None
        present = {entry.values.get(placed[place]) for entry in shown}
        values = tuple(value for value in known[placed[place]] if value in present)
        return Axis(placed[place], values, *(find_shared(values) if placed[place] in TEXT_KEYS else ()))

    return Axes(
        axis("x"),
        axis("y"),
        axis("z"),
        held=tuple(Axis(key, (value, *(other for other in differing[key] if other != value))) for key, value in held.items()),
        followers=followers,
        constants={key: values[0] for key, values in known.items() if len(values) == 1 and key not in placed.values()},
    )


def find_shared(values: Sequence[Value]) -> tuple[str, str]:
    """With what whole words all texts begin and end, each empty where it is short enough to be repeated."""
    rows = [label(value).split(" ") for value in values]
    if len(rows) < 2:
        return "", ""
    head = "".join(f"{word} " for word in _common(rows))
    head = head if len(head) >= LONG else ""
    rest = [row[head.count(" ") :] for row in rows]
    tail = "".join(f" {word}" for word in reversed(_common([row[::-1] for row in rest])))
    return head, tail if len(tail) >= LONG else ""


def _common(rows: Sequence[Sequence[str]]) -> list[str]:
    """The words with which all rows begin."""
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*rows, strict=False))]


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
    declared = [*dict.fromkeys(key for entry in entries for key in entry.axes), SWEEP]
    chosen = {key: known[key] for key in declared if len(known.get(key, ())) > 1}
    return chosen or _drop_followers(entries, {key: values for key, values in known.items() if len(values) > 1 and key != IMAGE})


def _drop_followers(entries: Sequence[Entry], differing: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
    """Of parameters that change together (a checkpoint and its family) keep the first."""
    kept: dict[tuple[int, ...], str] = {}
    for key in differing:
        place = {value: number for number, value in enumerate(dict.fromkeys(entry.values.get(key) for entry in entries))}
        kept.setdefault(tuple(place[entry.values.get(key)] for entry in entries), key)
    return {key: differing[key] for key in kept.values()}


def sort_values(values: Iterable[Value]) -> tuple[Value, ...]:
    """Numbers by size, anything else in the order of the plan; `None` comes first."""
    items = list(values)
    present = [value for value in items if value is not None]
    numeric = [value for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    ordered: list[Value] = [*sorted(numeric)] if len(numeric) == len(present) else [*present]
    return tuple([None, *ordered] if len(present) < len(items) else ordered)


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
