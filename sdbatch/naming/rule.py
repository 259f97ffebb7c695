"""One component's tensors in two spellings, the original code's and diffusers' (for text encoders transformers'): both directions.

A rule pairs an original module (or tensor) with the modules of diffusers it stands for; what follows the module in a name
(`.weight`) is the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar


class Piece(NamedTuple):
    """One tensor of a file, said in diffusers' names."""

    names: tuple[str, ...]
    """Several where the original keeps them stacked along the first dimension; none where diffusers has no such tensor."""
    form: str = "plain"
    """How the tensors differ: a key of `sdbatch.adapters.piece.FORMS`."""
    shares: tuple[int, ...] = ()
    """Rows of the stacked tensors relative to each other; empty: equal."""


class Rule(NamedTuple):
    """One module in both spellings."""

    original: str
    piece: Piece


def pairs(table: Mapping[str, str], original: str = "", ours: str = "", form: str = "plain") -> list[Rule]:
    """Rules for the modules within a block: original name -> diffusers' name, each after the block's own."""
    return [Rule(original + theirs, Piece((ours + name,), form)) for theirs, name in table.items()]


class Names:
    """The rules of one component, ready to be asked in either direction.

    Args:
        rules: For both directions.
        aliases: Other spellings that files have, for reading alone.
    """

    def __init__(self, rules: Iterable[Rule], aliases: Iterable[Rule] = ()) -> None:
        known = list(rules)
        self._theirs = {rule.original: rule.piece for rule in [*known, *aliases]}
        self._ours = {name: (rule, index) for rule in known for index, name in enumerate(rule.piece.names)}
        self.roots = frozenset(original.partition(".")[0] for original in self._theirs)
        """What every original name begins with, up to its first dot."""

    def is_original(self, names: Iterable[str]) -> bool:
        """Whether any of the names is not as diffusers has it today."""
        return any(piece.names != (name,) for name in names if (piece := self.read(name)))

    def read(self, name: str) -> Piece | None:
        """What a tensor of a file, in either spelling, is in diffusers' names; None for what belongs to no model."""
        theirs, ours = _longest(self._theirs, name), _longest(self._ours, name)
        if theirs and not (ours and len(ours[1]) < len(theirs[1])):
            return _extended(*theirs) if theirs[0].names else None
        return Piece((name,)) if ours else None

    def write(self, name: str) -> tuple[str, Piece] | None:
        """The original tensor that begins with this one of diffusers, or None where another one brings it in."""
        if not (found := _longest(self._ours, name)):
            return None
        (rule, index), rest = found
        return None if index else (rule.original + rest, _extended(rule.piece, rest))


def highest(names: Collection[str], pattern: str) -> int:
    """The highest number that the pattern finds at the beginning of a name; -1 for none."""
    compiled = re.compile(pattern)
    return max((int(found[1]) for name in names if (found := compiled.match(name))), default=-1)


def _extended(piece: Piece, rest: str) -> Piece:
    return piece._replace(names=tuple(name + rest for name in piece.names))


_Found = TypeVar("_Found")


def _longest(table: Mapping[str, _Found], name: str) -> tuple[_Found, str] | None:
    """The entry of the longest beginning of a name that ends at a dot, and the rest of the name."""
    end = len(name)
    while end > 0:
        if (found := table.get(name[:end])) is not None:
            return found, name[end:]
        end = name.rfind(".", 0, end)
    return None
