"""A draft becomes a plan: ranges checked, files found and hashed, images named, cells ordered. All faults at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdbatch.cell import SINGLE_PARTS, STACKS, Recipe, WeightFile
from sdbatch.errors import SdbatchError
from sdbatch.families.enlargers import ENLARGERS
from sdbatch.hub.address import is_address
from sdbatch.plan.axis import Codes
from sdbatch.plan.bitmap import Bitmap
from sdbatch.plan.cells import RECIPE_LEAVES, prune, recipe_of
from sdbatch.plan.compatibility import check_recipes
from sdbatch.plan.draft import Draft, FaultList
from sdbatch.plan.family_rule import FAMILY_KEYS, family_fault
from sdbatch.plan.files import FileBook
from sdbatch.plan.identity import FILE_LEAVES, file_group
from sdbatch.plan.image_encoder import choose_encoders
from sdbatch.plan.image_ids import ImageIds
from sdbatch.plan.kind import Kinds, divide, iter_values
from sdbatch.plan.order import Order
from sdbatch.plan.pin import find_preset, pin_faults, tell_absent
from sdbatch.plan.plan import Plan, recipe_order
from sdbatch.plan.rule import RULES, block_fault, pair_faults
from sdbatch.plan.schedule_rule import schedule_faults
from sdbatch.plan.task import picture_faults, task_faults
from sdbatch.plan.tree import Tree, expand, get, has, overlay
from sdbatch.weights.elsewhere import tell_elsewhere
from sdbatch.weights.index import Index
from sdbatch.weights.kinds import GROUPS

BATCH_LEAVES = (
    *("width", "height", "steps", "sampler.name", "sampler.options"),
    *(f"task.{key}" for key in ("name", "strength", "steps", "scale", "width", "height", "upscaler")),
)
"""Cells that differ in one of these cannot share a batch, so equal ones stand together."""

OPTIONAL_FILES = (
    *(f"{group}.file" for group in SINGLE_PARTS),
    "controlnet.*.image",
    "ip_adapter.*.image",
    "task.image",
    "task.mask",
    "task.upscaler",
    "checkpoint.merge.b",
    "checkpoint.merge.c",
)
"""Files that may be left out, or whose absence a rule tells better."""


def resolve(draft: Draft, name: str, defaults: Mapping[str, Any], book: FileBook) -> Plan:
    """Resolve a draft. `defaults` are the keys that decide the image, with their neutral values.

    Raises: PlanError with every fault found.
    """
    faults = FaultList()
    draft = choose_encoders(draft, book, Index())
    _refuse_idle_axes(draft, defaults, faults)
    _check_ranges(draft, faults)
    _check_families(draft, faults)
    for key, message in task_faults(draft):
        faults.add(key, message)
    files = _find_files(draft, book, faults)
    for key, message in picture_faults(draft, files):
        faults.add(key, message)
    faults.raise_if_any()
    kinds = divide(draft, [key for key in draft.columns if _pattern(key) in RECIPE_LEAVES or key in BATCH_LEAVES])
    recipe, recipes = _recipes(draft, kinds, book)
    pairs = [(item, sampler) for item, sampler in _sampled(draft, kinds, recipe, recipes) if item.engine != "rehearsal"]
    for fault in (*check_recipes(list(dict(pairs)), book.catalog), *schedule_faults(pairs, Index())):
        faults.add(fault.key, fault.message)
    faults.raise_if_any()
    image_ids = ImageIds(draft, defaults, {key: file.sha256 for key, file in files.items()})
    rank = recipe_order(recipes)
    order, of_class = _order(kinds, rank[recipe], _batch_codes(draft, kinds))
    plan = Plan(
        name=name,
        groups=[prune(plain, defaults) for plain in draft.groups],
        recipes=[recipes[index] for index in np.argsort(rank).tolist()],
        files=files,
        columns=draft.columns,
        labels=draft.labels,
        choices=draft.choices,
        image_ids=image_ids,
        order=order,
        recipe_of_class=of_class,
        left=Bitmap.all(len(order)),
        made=Bitmap.of(len(order), ()),
    )
    return plan.without_repeated()


def _refuse_idle_axes(draft: Draft, defaults: Mapping[str, Any], faults: FaultList) -> None:
    for key, column in draft.columns.items():
        if _pattern(key) not in defaults and len(column.values) > 1:
            faults.add(key, _idle_message(key))
    for plain in draft.groups:
        for key in _idle_merge_keys(plain, draft, defaults):
            faults.add(key, "does nothing without a second checkpoint. Set checkpoint.merge.b.")
    if not any(get(plain, "upscaler.file") for plain in draft.groups) and "upscaler.file" not in draft.columns:
        for key in {"upscaler.tile_px"} & set(draft.columns):
            faults.add(key, "does nothing without an upscaler. Set upscaler=NAME.")


def _idle_merge_keys(plain: Mapping[str, Any], draft: Draft, defaults: Mapping[str, Any]) -> list[str]:
    # A sweep over B may have null in it, beside a ratio that is for the others.
    if get(plain, "checkpoint.merge.b") is not None or "checkpoint.merge.b" in draft.columns:
        return []
    keys = [f"checkpoint.merge.{name}" for name in get(plain, "checkpoint.merge") or {}]
    return [key for key in keys if key in draft.columns or get(plain, key) != defaults[key]]


def _idle_message(key: str) -> str:
    owner, _, last = key.rpartition(".")
    if last in ("repo", "revision"):
        return f"cannot be swept by itself. Sweep {owner}.file=hf://owner/name@revision,hf://... instead."
    return "does not change the image, so it cannot be swept. Set it to one value."


def _check_ranges(draft: Draft, faults: FaultList) -> None:
    for plain in draft.groups:
        for pattern, rule in RULES.items():
            for key, _ in expand(plain, pattern):
                column = draft.columns.get(key)
                wholly_swept = column is not None and column.is_everywhere
                value = get(plain, key)
                if not wholly_swept and has(plain, key) and not rule.test(value):
                    faults.add(key, rule.message(value))
        for key, message in pair_faults(plain):
            faults.add(key, message)
    for key, column in draft.columns.items():
        _check_column(key, column.values, draft.groups, faults)


def _check_column(key: str, values: Sequence[Any], groups: Sequence[Tree], faults: FaultList) -> None:
    rule = RULES.get(_pattern(key))
    for value in values:
        if rule is not None and not rule.test(value):
            faults.add(key, rule.message(value))
        for plain in groups if _pattern(key) == "lora.*.blocks" else ():
            if told := block_fault(value, get(plain, "family.name")):
                faults.add(key, told)


def _check_families(draft: Draft, faults: FaultList) -> None:
    for key in FAMILY_KEYS:
        for group, (value,) in iter_values(draft, [key]):
            if message := family_fault(draft.groups[group], key, value):
                faults.add(key.removesuffix(".name"), message)


def _pattern(key: str) -> str:
    """`lora.style_a.weight` -> `lora.*.weight`."""
    stack, _, rest = key.partition(".")
    return f"{stack}.*.{rest.partition('.')[2]}" if stack in STACKS else key


def _find_files(draft: Draft, book: FileBook, faults: FaultList) -> dict[tuple[str, str], WeightFile]:
    """Every file the draft names, by (group, name as typed)."""
    found: dict[tuple[str, str], WeightFile] = {}
    for key, group, asked in _named_files(draft):
        if (group, asked) in found:
            continue
        if asked is None:
            faults.add(key, "is not set; give an option, a file name or a path." if has(draft.groups[0], key) else _ghost(key))
            continue
        try:
            found[group, asked] = book.file(group, asked)
        except SdbatchError as error:
            without_file = f" Without a file: {', '.join(ENLARGERS)}." if key == "task.upscaler" else ""
            faults.add(key, _tell_missing(draft, book, group, asked, error) + without_file)
    for key, message in pin_faults(draft.groups, found):
        faults.add(key, message)
    return found


def _tell_missing(draft: Draft, book: FileBook, group: str, asked: str, error: SdbatchError) -> str:
    """What was asked for, and what to do."""
    if preset := find_preset(draft.groups, group, asked):
        return tell_absent(group, preset, book.catalog)
    if is_address(asked):
        return str(error)
    elsewhere = tell_elsewhere(book.catalog, group, asked) if group in GROUPS else ""
    return f"{asked}: {elsewhere or str(error).partition(f'={asked}: ')[2] or str(error).removeprefix(f'{asked}: ')}"


def _ghost(key: str) -> str:
    stack, name, _ = key.split(".")
    return f"{stack} {name!r} is set but not in the stack. Add it: '{stack}=[{name}]'."


def _named_files(draft: Draft) -> list[tuple[str, str, Any]]:
    """(key, group, name) of every file leaf of every configuration and column; unset optional ones left out."""
    named: dict[tuple[str, str, Any], None] = {}
    for plain in draft.groups:
        for pattern, group in FILE_LEAVES.items():
            for key, _ in expand(plain, pattern):
                value = get(plain, key)
                swept = draft.columns.get(key)
                if file_group(pattern, value) is None and (pattern in OPTIONAL_FILES or swept is not None):
                    continue
                named[key, group, value] = None
    for key, column in draft.columns.items():
        for value in column.values if _pattern(key) in FILE_LEAVES else ():
            if (group := file_group(_pattern(key), value)) is not None:
                named[key, group, value] = None
    return list(named)


def _recipes(draft: Draft, kinds: Kinds, book: FileBook) -> tuple[Codes, list[Recipe]]:
    """The recipe of every kind, and the distinct recipes."""
    keys = [key for key in draft.columns if _pattern(key) in RECIPE_LEAVES]
    table = np.stack([kinds.group, *(draft.columns[key].at(kinds.points) for key in keys)], axis=1)
    combinations, inverse = np.unique(table, axis=0, return_inverse=True)
    recipes: dict[Recipe, int] = {}
    codes: list[int] = []
    for group, *local in combinations.tolist():
        picked = {key: draft.columns[key].values[code] for key, code in zip(keys, local, strict=True) if code >= 0}
        recipe = recipe_of(overlay(draft.groups[group], picked), book)
        codes.append(recipes.setdefault(recipe, len(recipes)))
    return np.array(codes, dtype=np.int64)[inverse.reshape(-1)], list(recipes)


def _sampled(draft: Draft, kinds: Kinds, recipe: Codes, recipes: Sequence[Recipe]) -> list[tuple[Recipe, str]]:
    """Each recipe with the samplers that are run with it."""
    column = draft.columns.get("sampler.name")
    codes = np.full(len(kinds.numbers), -1) if column is None else column.at(kinds.points)
    own = [get(plain, "sampler.name") for plain in draft.groups]
    table = np.unique(np.stack([recipe, kinds.group, codes], axis=1), axis=0).tolist()
    return [(recipes[which], column.values[code] if column is not None and code >= 0 else own[group]) for which, group, code in table]


def _batch_codes(draft: Draft, kinds: Kinds) -> Codes:
    """A number for each kind, equal for those that may share a batch."""
    keys = [key for key in draft.columns if key in BATCH_LEAVES]
    constants: dict[str, int] = {}
    group = [
        constants.setdefault(repr([get(plain, key) for key in BATCH_LEAVES if key not in keys]), len(constants)) for plain in draft.groups
    ]
    table = np.stack([np.array(group, dtype=np.int64)[kinds.group], *(draft.columns[key].at(kinds.points) for key in keys)], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)


def _order(kinds: Kinds, recipe: Codes, batch: Codes) -> tuple[Order, Codes]:
    """Cells by recipe, then by what cannot share a batch, then as written; and the recipe of each such class."""
    order = np.lexsort((kinds.numbers, batch, recipe))
    begins = np.flatnonzero(np.diff(recipe[order], prepend=-1) | np.diff(batch[order], prepend=-1))
    return Order(kinds.parts, np.split(kinds.numbers[order], begins[1:])), recipe[order][begins]
