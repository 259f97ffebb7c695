"""Conditions on the names of tensors: how tables say what a file is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class Keys:
    """The tensor names of a file, to be asked for patterns.

    A pattern is a piece of a name; `^` at its start and `$` at its end stand for the ends of the name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # One text, one search per pattern: thousands of names cost microseconds.
        self._text = "\n" + "\n".join(name.replace("\n", "?") for name in names) + "\n"

    def has(self, pattern: str) -> bool:
        """Whether some name matches the pattern."""
        return to_text_pattern(pattern) in self._text

    def has_any(self, patterns: Iterable[str]) -> bool:
        """Whether some name matches one of the patterns."""
        return any(self.has(pattern) for pattern in patterns)


def to_text_pattern(pattern: str) -> str:
    """A pattern as the text between line ends that it stands for."""
    text = pattern.replace("^", "\n", 1) if pattern.startswith("^") else pattern
    return text[:-1] + "\n" if text.endswith("$") else text


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
