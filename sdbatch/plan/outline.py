"""The axes of a plan as a person reads them: how many values, and the first and last of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdbatch.errors import harmless
from sdbatch.plan.axis import Column
from sdbatch.plan.plan import Plan

FIRST = 3
"""So many values are told, and the last."""
LETTERS = 32
"""Of a value that is told."""
TEXTS = ("prompt", "negative_prompt")


def axis_lines(plan: Plan) -> list[str]:
    """A line for each swept key: `axis` begins an axis, `with` goes on with the keys that advance together."""
    lines: list[str] = []
    for keys in _axes(plan).values():
        for place, (key, column) in enumerate(keys.items()):
            lines.append(f"{'with' if place else 'axis':<8} {key}: {len(column.values)} ({sample(key, column.values)})")
    return lines


def axis_summary(plan: Plan) -> str:
    """`prompt, seed (3: a red fox | a car | a dog) x steps (2)`: prompts are told, since a comma may have cut one in two."""
    told: list[str] = []
    for number, keys in _axes(plan).items():
        points = plan.choices.sizes[number]
        texts = [sample(key, keys[key].values) for key in TEXTS if key in keys]
        if points > 1:
            told.append(f"{', '.join(keys)} ({points}{': ' if texts else ''}{'; '.join(texts)})")
    return " x ".join(told)


def sample(key: str, values: Sequence[Any]) -> str:
    """The first values and the last one."""
    between = " | " if key in TEXTS else ", "
    if len(values) <= FIRST + 1:
        return between.join(map(_short, values))
    return between.join([*(_short(value) for value in values[:FIRST]), "...", _short(values[-1])])


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else harmless(" ".join(str(value).split()))
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _axes(plan: Plan) -> dict[int, dict[str, Column]]:
    """The keys of each axis, by its number, in the order in which they are written."""
    found: dict[int, dict[str, Column]] = {}
    for key, column in {**plan.labels, **plan.columns}.items():
        found.setdefault(column.axis, {})[key] = column
    return dict(sorted(found.items()))
