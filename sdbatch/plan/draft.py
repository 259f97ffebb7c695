"""Expand a space of axes over composed configurations: one composition per distinct choice of options, columns for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sdbatch.cell import STACKS
from sdbatch.errors import ConfigError, Fault, PlanError, to_fault
from sdbatch.plan.axis import Column, Points, Space
from sdbatch.plan.part import Parts
from sdbatch.plan.tree import Tree, get, has, overlay

Mask = npt.NDArray[np.bool_]

FAULTS_PER_KEY = 3
"""More values wrong in the same way are counted, not listed."""


class Composed(Protocol):
    """A composed configuration (`sdbatch.config.compose.Composition`)."""

    @property
    def plain(self) -> Tree:
        """Its resolved values."""
        ...

    def convert(self, key: str, value: Any) -> Any:
        """The value as the schema takes it. Raises ConfigError."""
        ...

    def interpolates(self, key: str) -> bool:
        """Whether other values may be computed from this key."""
        ...


@dataclass(frozen=True)
class Draft:
    """All cells of a sweep, not yet checked and none written out: each is a composed configuration and some columns."""

    choices: Parts
    """The space, divided by choice of options; each part has a configuration."""
    groups: list[Tree]
    """The configurations."""
    columns: dict[str, Column]
    """Key path -> the values that are overlaid on the configuration."""
    labels: dict[str, Column]
    """Group choices that are swept (`lora`, `sampler`), as typed."""
    exclude: Sequence[Mapping[str, Any]]
    """Values of cells that are left out."""

    @cached_property
    def apart(self) -> Parts:
        """The space, divided by choice of options and by what tells the cells that are left out."""
        return self.choices.finer(hits for item in self._hits for _, _, hits in item if hits is not None)

    @cached_property
    def _hits(self) -> list[list[tuple[str, Any, Column | None]]]:
        """Of each item of `exclude`, its keys and values, and of those that are swept which values hit."""
        both = {**self.labels, **self.columns}
        return [[(key, value, hits_of(both[key], value) if key in both else None) for key, value in item.items()] for item in self.exclude]

    def excluded(self, points: Points) -> Mask:
        """Which of some cells are left out. Raises ConfigError for a key that is nowhere."""
        found = np.zeros(len(points[0]), dtype=bool)
        for item in self._hits:
            hit = np.ones(len(found), dtype=bool)
            for key, value, hits in item:
                hit &= self._equals(key, value, hits, points)
            found |= hit
        return found

    def _equals(self, key: str, value: Any, hits: Column | None, points: Points) -> Mask:
        constant = np.array([get(plain, key) == value for plain in self.groups], dtype=bool)[self.choices.at(points)]
        if hits is not None:
            swept = hits.at(points)
            return np.where(swept >= 0, swept == 1, constant)
        if not any(has(plain, key) for plain in self.groups):
            raise ConfigError(f"matrix.exclude: there is no key {key}.")
        if all(isinstance(get(plain, key), dict) for plain in self.groups):
            raise ConfigError(
                f"matrix.exclude: {key} chooses options and is not swept here, so it leaves nothing out. Take it out of there."
            )
        return constant


def hits_of(column: Column, value: Any) -> Column:
    """Whether a column has a value: 1 where it has, 0 where it has another, -1 where it has none."""
    wanted = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
    hits = np.array([*(item in (value, wanted) for item in column.values), -1], dtype=np.int64)
    return Column(column.axis, (False, True), hits[:-1] if column.codes is None else hits[column.codes])


@dataclass(frozen=True)
class Sweep:
    """What is to be expanded."""

    space: Space
    exclude: Sequence[Mapping[str, Any]]
    fixed: Mapping[str, Any]
    """Values of stack items that hold for every cell."""
    compose: Callable[[Sequence[str]], Composed]
    """Compose with these further overrides (`lora=[style_a]`)."""
    is_choice: Callable[[str], bool]
    """Whether a key chooses options, so that composition must see it."""


def expand(sweep: Sweep) -> Draft:
    """Expand the sweep. Raises PlanError with every key and value that the schema refuses, ConfigError from composition."""
    base = sweep.compose([])
    sizes, columns = sweep.space.expand()
    labels = {key: column for key, column in columns.items() if sweep.is_choice(key) or not _is_leaf(base, key)}
    choices = Parts.of(sizes, labels.values())
    groups = _compose_each(sweep, choices, labels)
    faults = FaultList()
    plains = [_with_fixed(item, sweep.fixed, faults) for item in groups]
    leaves = {
        key: replace(column, values=_convert(groups, choices, key, column, faults)) for key, column in columns.items() if key not in labels
    }
    faults.raise_if_any()
    return Draft(choices, plains, leaves, labels, sweep.exclude)


def _is_leaf(base: Composed, key: str) -> bool:
    """Whether overlaying the key on a composed configuration is the same as composing with it."""
    stack_item = key.partition(".")[0] in STACKS and key.count(".") == 2
    known = stack_item or (has(base.plain, key) and not isinstance(get(base.plain, key), dict | list))
    return known and not base.interpolates(key)


def _compose_each(sweep: Sweep, choices: Parts, labels: Mapping[str, Column]) -> list[Composed]:
    """One composition per distinct combination of choices."""
    points = choices.points(np.arange(len(choices)))
    chosen = [(key, column.values, column.at(points)) for key, column in labels.items()]
    groups: list[Composed] = []
    faults = FaultList()
    for group in range(len(choices)):
        overrides = [f"{key}={_override_value(values[codes[group]])}" for key, values, codes in chosen if codes[group] >= 0]
        try:
            groups.append(sweep.compose(overrides))
        except ConfigError as error:
            fault = to_fault(str(error))
            faults.add(fault.key, fault.message)
    faults.raise_if_any()
    return groups


def _override_value(value: Any) -> str:
    """A value in Hydra's grammar. Choices are written already; numbers and lists of matrix are not."""
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | dict():
            import json

            return json.dumps(value).replace('": ', '":')
        case _:
            return str(value)


def _with_fixed(item: Composed, fixed: Mapping[str, Any], faults: FaultList) -> Tree:
    values: Tree = {}
    for key, value in fixed.items():
        try:
            values[key] = item.convert(key, value)
        except ConfigError as error:
            faults.add(key, _tail(error, key))
    return overlay(item.plain, values)


def _convert(groups: Sequence[Composed], choices: Parts, key: str, column: Column, faults: FaultList) -> Sequence[Any]:
    """The column's values by the schema; faults for groups that lack the key."""
    owner: Composed | None = None
    for index in _groups_with(choices, column):
        if has(groups[index].plain, key):
            owner = groups[index]
        else:
            try:
                groups[index].convert(key, None)
            except ConfigError as error:
                faults.add(key, _tail(error, key))
    if owner is None or (_are_integers(column.values) and type(get(owner.plain, key)) is int):
        return column.values  # a million seeds need no million conversions
    converted: list[Any] = []
    for value in column.values:
        try:
            converted.append(owner.convert(key, value))
        except ConfigError as error:
            faults.add(key, _tail(error, key))
    return converted


def _groups_with(choices: Parts, column: Column) -> list[int]:
    """The groups that have a cell in which the column sets its key."""
    groups = np.arange(len(choices))
    subsets = choices.subsets[column.axis]
    if subsets is None or column.codes is None:
        return groups.tolist() if column.values else []
    return groups[np.isin(choices.split(groups)[column.axis], subsets[column.codes >= 0])].tolist()


def _are_integers(values: Sequence[Any]) -> bool:
    return isinstance(values, range) or all(type(value) is int for value in values)


def _tail(error: ConfigError, key: str) -> str:
    text = str(error)
    return text.removeprefix(f"{key}: ").removeprefix(f"{key} ")


class FaultList:
    """Faults of a plan; of many of one key only the first are listed."""

    def __init__(self) -> None:
        self.by_key: dict[str, list[str]] = {}

    def add(self, key: str, message: str) -> None:
        """One more; the same fault counts once."""
        messages = self.by_key.setdefault(key, [])
        if message not in messages:
            messages.append(message)

    def all(self) -> list[Fault]:
        """All that are listed."""
        found: list[Fault] = []
        for key, messages in self.by_key.items():
            found += [Fault(key, message) for message in messages[:FAULTS_PER_KEY]]
            if len(messages) > FAULTS_PER_KEY:
                found.append(Fault(key, f"and {len(messages) - FAULTS_PER_KEY} more values wrong."))
        return found

    def raise_if_any(self) -> None:
        """Raises PlanError with all of them."""
        if found := self.all():
            raise PlanError(found)
