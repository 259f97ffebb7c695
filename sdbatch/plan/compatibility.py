"""Whether the parts of every recipe fit together, from their headers, before a byte of weights is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sdbatch.cell import Recipe
from sdbatch.errors import Fault, SdbatchError
from sdbatch.merge.table import find_fault
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.fit import find_mismatch
from sdbatch.weights.identify import Identity
from sdbatch.weights.index import Index

SHOWN_FITTING = 6


def check_recipes(recipes: Sequence[Recipe], catalog: Catalog, index: Index | None = None) -> list[Fault]:
    """Every part that cannot be used with its recipe's checkpoint, and every file that is not what it should be."""
    found: dict[Fault, None] = {}
    for recipe in recipes:
        found.update(dict.fromkeys(_faults(recipe, catalog, index or Index())))
    return list(found)


def _faults(recipe: Recipe, catalog: Catalog, index: Index) -> Iterator[Fault]:
    try:
        base = index.identify(Path(recipe.checkpoint.path))
    except SdbatchError as error:
        yield Fault("checkpoint", str(error))
        return
    if message := find_mismatch(base, "checkpoint", base):
        yield Fault("checkpoint", f"{recipe.checkpoint.name} {message}.")
        return
    if recipe.merge and (found := find_fault(recipe.merge)):
        yield Fault(f"checkpoint.merge.{found[0]}", found[1])
    for key, group, file in recipe.parts():
        try:
            message = find_mismatch(index.identify(Path(file.path)), group, base)
        except SdbatchError as error:
            yield Fault(key, str(error))
            continue
        if message is not None:
            yield Fault(key, f"{file.name} {message}. {_fitting(group, base, catalog, index)}")


def _fitting(group: str, base: Identity, catalog: Catalog, index: Index) -> str:
    """The files of the models folders that would fit."""
    names = [
        item.name for item in index.list_catalog(catalog, [group]) if item.identity and find_mismatch(item.identity, group, base) is None
    ]
    if not names:
        return f"No {group} in the models folders fits."
    more = f", ... ({len(names)})" if len(names) > SHOWN_FITTING else ""
    return f"Fitting here: {', '.join(names[:SHOWN_FITTING])}{more}."
