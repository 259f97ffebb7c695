"""Expand a space of axes over composed configurations: one composition per distinct choice of options, columns for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdbatch.cell import STACKS
from sdbatch.errors import ConfigError, Fault, PlanError
from sdbatch.plan.axis import UNSET, Axis, Codes, Space, distinct
from sdbatch.plan.tree import Tree, get, has, overlay

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
class Column:
    """The values of one swept key: its distinct values, and per cell the index of its value (-1: as composed)."""

    values: list[Any]
    codes: Codes


@dataclass(frozen=True)
class Draft:
    """All cells of a sweep, not yet checked: a composed configuration and some columns each."""

    groups: list[Tree]
    group: Codes
    """Per cell the index of its configuration."""
    columns: dict[str, Column]
    """Key path -> the values that are overlaid on the configuration."""
    labels: dict[str, Column]
    """Group choices that are swept (`lora`, `sampler`), as typed."""

    def __len__(self) -> int:
        return len(self.group)

    def config(self, cell: int) -> Tree:
        """The whole configuration of one cell."""
        picked = {key: column.values[column.codes[cell]] for key, column in self.columns.items() if column.codes[cell] >= 0}
        return overlay(self.groups[int(self.group[cell])], picked)


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
    axes, codes = sweep.space.expand()
    count = len(codes[0]) if codes else 1
    structural = {key for axis in axes for key in axis.keys if sweep.is_choice(key) or not _is_leaf(base, key)}
    columns = _columns(axes, codes)
    choices = {key: columns.pop(key) for key in list(columns) if key in structural}
    groups, group = _compose_each(sweep, choices, count)
    faults = _Faults()
    plains = [_with_fixed(item, sweep.fixed, faults) for item in groups]
    for key, column in columns.items():
        columns[key] = Column(_convert(groups, group, key, column, faults), column.codes)
    faults.raise_if_any()
    return _exclude(Draft(plains, group, columns, choices), sweep.exclude)


def _is_leaf(base: Composed, key: str) -> bool:
    """Whether overlaying the key on a composed configuration is the same as composing with it."""
    stack_item = key.partition(".")[0] in STACKS and key.count(".") == 2
    known = stack_item or (has(base.plain, key) and not isinstance(get(base.plain, key), dict | list))
    return known and not base.interpolates(key)


def _columns(axes: Sequence[Axis], codes: Sequence[Codes]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for axis, code in zip(axes, codes, strict=True):
        for key, values in zip(axis.keys, axis.columns, strict=True):
            found, local = distinct(values)
            if UNSET in found:
                unset = found.index(UNSET)
                found.pop(unset)
                local = np.where(local == unset, -1, np.where(local > unset, local - 1, local))
            columns[key] = Column(found, local[code])
    return columns


def _compose_each(sweep: Sweep, choices: Mapping[str, Column], count: int) -> tuple[list[Composed], Codes]:
    """One composition per distinct combination of choices, in order of first appearance."""
    if not choices:
        return [sweep.compose([])], np.zeros(count, dtype=np.int64)
    table = np.stack([column.codes for column in choices.values()], axis=1)
    combinations, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    groups: list[Composed] = []
    faults = _Faults()
    for combination in combinations[order].tolist():
        pairs = zip(choices.items(), combination, strict=True)
        overrides = [f"{key}={_override_value(column.values[code])}" for (key, column), code in pairs if code >= 0]
        try:
            groups.append(sweep.compose(overrides))
        except ConfigError as error:
            key, _, message = str(error).partition(": ")
            faults.add(key, message)
    faults.raise_if_any()
    return groups, rank[inverse.reshape(-1)]


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


def _with_fixed(item: Composed, fixed: Mapping[str, Any], faults: _Faults) -> Tree:
    values: Tree = {}
    for key, value in fixed.items():
        try:
            values[key] = item.convert(key, value)
        except ConfigError as error:
            faults.add(key, _tail(error, key))
    return overlay(item.plain, values)


def _convert(groups: Sequence[Composed], group: Codes, key: str, column: Column, faults: _Faults) -> list[Any]:
    """The column's values by the schema; faults for groups that lack the key."""
    owner: Composed | None = None
    for index in np.unique(group[column.codes >= 0]).tolist():
        if has(groups[index].plain, key):
            owner = groups[index]
        else:
            try:
                groups[index].convert(key, None)
            except ConfigError as error:
                faults.add(key, _tail(error, key))
    if owner is None:
        return column.values
    if all(type(value) is int for value in column.values) and type(get(owner.plain, key)) is int:
        return column.values  # a million seeds need no million conversions
    converted: list[Any] = []
    for value in column.values:
        try:
            converted.append(owner.convert(key, value))
        except ConfigError as error:
            faults.add(key, _tail(error, key))
    return converted


def _tail(error: ConfigError, key: str) -> str:
    text = str(error)
    return text.removeprefix(f"{key}: ").removeprefix(f"{key} ")


def _exclude(draft: Draft, exclude: Sequence[Mapping[str, Any]]) -> Draft:
    if not exclude:
        return draft
    keep = np.ones(len(draft), dtype=bool)
    for item in exclude:
        match = np.ones(len(draft), dtype=bool)
        for key, value in item.items():
            match &= _equals(draft, key, value)
        keep &= ~match
    if not keep.any():
        raise ConfigError("matrix.exclude: leaves out every cell, so there is nothing to make.")
    return Draft(draft.groups, draft.group[keep], _kept(draft.columns, keep), _kept(draft.labels, keep))


def _kept(columns: Mapping[str, Column], keep: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Column]:
    return {key: Column(column.values, column.codes[keep]) for key, column in columns.items()}


def _equals(draft: Draft, key: str, value: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    column = draft.columns.get(key) or draft.labels.get(key)
    constant = np.array([get(plain, key) == value for plain in draft.groups], dtype=bool)[draft.group]
    if column is None:
        if not any(has(plain, key) for plain in draft.groups):
            raise ConfigError(f"matrix.exclude: there is no key {key}.")
        return constant
    wanted = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
    hits = np.array([item in (value, wanted) for item in column.values] + [False], dtype=bool)
    return np.where(column.codes >= 0, hits[column.codes], constant)


class _Faults:
    """Collects faults; of many of one key only the first are listed."""

    def __init__(self) -> None:
        self.by_key: dict[str, list[str]] = {}

    def add(self, key: str, message: str) -> None:
        messages = self.by_key.setdefault(key, [])
        if message not in messages:
            messages.append(message)

    def all(self) -> list[Fault]:
        found: list[Fault] = []
        for key, messages in self.by_key.items():
            found += [Fault(key, message) for message in messages[:FAULTS_PER_KEY]]
            if len(messages) > FAULTS_PER_KEY:
                found.append(Fault(key, f"and {len(messages) - FAULTS_PER_KEY} more values wrong."))
        return found

    def raise_if_any(self) -> None:
        if found := self.all():
            raise PlanError(found)


FaultList = _Faults
