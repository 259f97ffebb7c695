"""What a merge may be asked for: methods and their numbers, without torch, for plans, verbs and their errors."""

from __future__ import annotations

from dataclasses import dataclass

from sdbatch.cell import Merge
from sdbatch.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """One method."""

    sources: int
    """Checkpoints it takes, the first included."""
    formula: str
    """As people write it."""
    uses_density: bool = False
    uses_seed: bool = False


METHODS: dict[str, MethodFacts] = {
    "weighted_sum": MethodFacts(2, "A (1 - ratio) + B ratio"),
    "add_difference": MethodFacts(3, "A + (B - C) ratio"),
    "slerp": MethodFacts(2, "from A to B along the arc between them"),
    "ties": MethodFacts(3, "C + what A and B changed most, conflicting signs resolved", uses_density=True),
    "dare": MethodFacts(3, "C + a random share of what A and B changed, rescaled", uses_density=True, uses_seed=True),
}


def find_method(name: str) -> MethodFacts:
    """The method of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}. {did_you_mean(name, METHODS)}")
    return METHODS[name]


def find_fault(merge: Merge) -> tuple[str, str] | None:
    """(name of the field, message) of the first thing wrong with a merge; None when it can be done."""
    try:
        facts = find_method(merge.method)
    except ConfigError as error:
        return "method", str(error)
    if facts.sources == 3 and merge.c is None:
        return "c", f"is not set; {merge.method} is {facts.formula}, so it needs a third checkpoint."
    if facts.sources == 2 and merge.c is not None:
        return "c", f"does nothing with {merge.method} ({facts.formula}). Leave it out, or choose add_difference, ties or dare."
    if not 0 < merge.density <= 1:
        return "density", f"{merge.density} is out of range; it is the share of the changes that is kept, above 0 and up to 1."
    return None
