"""Conditions on the names of tensors: how tables say what a file is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass


class Keys:
    """The tensor names of a file, to be asked for patterns.

    A pattern is a piece of a name; `^` at its start and `$` at its end stand for the ends of the name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        plain = [name.replace("\n", "?") for name in names]
        # One text, one search per pattern: thousands of names cost microseconds.
        self._text = "\n".join(plain) + "\n"
        # How names begin, their order tells without a search.
        self._sorted = sorted(plain)

    def has(self, pattern: str) -> bool:
        """Whether some name matches the pattern."""
        if not pattern.startswith("^"):
            return (pattern[:-1] + "\n" if pattern.endswith("$") else pattern) in self._text
        start = pattern[1:].removesuffix("$")
        place = bisect_left(self._sorted, start)
        first = self._sorted[place] if place < len(self._sorted) else ""
        return first == start if pattern.endswith("$") else first.startswith(start)

    def has_any(self, patterns: Iterable[str]) -> bool:
        """Whether some name matches one of the patterns."""
        return any(self.has(pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a table: what a file is called when its names meet the conditions."""

    label: str
    any: tuple[str, ...] = ()
    """At least one of these is there."""
    all: tuple[str, ...] = ()
    """Each of these is there."""
    none: tuple[str, ...] = ()
    """None of these is there."""

    def matches(self, keys: Keys) -> bool:
        """Whether the names meet the conditions."""
        if self.any and not keys.has_any(self.any):
            return False
        return all(keys.has(pattern) for pattern in self.all) and not keys.has_any(self.none)


def first_match(rules: Iterable[Rule], keys: Keys) -> str | None:
    """The label of the first row that matches."""
    return next((rule.label for rule in rules if rule.matches(keys)), None)
