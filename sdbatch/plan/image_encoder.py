"""Which image encoder the IP-Adapters of a plan see through: the one in the stack, else the one of the models folders that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import Fault, SdbatchError
from sdbatch.plan.draft import Draft
from sdbatch.plan.files import FileBook
from sdbatch.plan.pin import shown_folder
from sdbatch.plan.tree import Tree, get, overlay
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.identity import Identity
from sdbatch.weights.image_fit import describe_need, find_fitting, fits, name_known
from sdbatch.weights.index import Index


def choose_encoders(draft: Draft, book: FileBook, index: Index) -> Draft:
    """The draft with an image encoder in the stack wherever IP-Adapters have none and exactly one file fits.

    What stays open is told by `encoder_faults`, beside all other faults.
    """
    open_groups = [bool(get(plain, "ip_adapter")) and not get(plain, "image_encoder") for plain in draft.groups]
    if not any(open_groups):
        return draft
    # The files decide, so configurations are told apart by them: a sweep over files may need different encoders.
    keys = [key for key in draft.columns if key.startswith("ip_adapter.") and key.endswith(".file")]
    choices = draft.choices.finer(draft.columns[key] for key in keys)
    points = choices.points(np.arange(len(choices)))
    chosen = [(key, draft.columns[key].values, draft.columns[key].at(points)) for key in keys]
    groups: list[Tree] = []
    for group, own in enumerate(draft.choices.at(points).tolist()):
        picked = {key: values[codes[group]] for key, values, codes in chosen if codes[group] >= 0}
        plain = overlay(draft.groups[own], picked)
        groups.append({**plain, "image_encoder": _find_encoders(plain, book, index)} if open_groups[own] else plain)
    return replace(draft, choices=choices, groups=groups)


def _find_encoders(plain: Tree, book: FileBook, index: Index) -> Tree:
    """The stack of image encoders for the IP-Adapters of a configuration, in their order."""
    found: Tree = {}
    listed = list(index.list_catalog(book.catalog, ["image_encoder"]))
    for item in cast(dict[str, Tree], plain["ip_adapter"]).values():
        try:
            adapter = index.identify(Path(book.weight("ip_adapter", item["file"]).path)) if item["file"] else None
        except SdbatchError:
            continue  # told where the file is looked for
        names = find_fitting(adapter, listed) if adapter else []
        if len(names) == 1:
            found[names[0]] = {"file": names[0]}
    return found


def encoder_faults(recipe: Recipe, file: WeightFile, catalog: Catalog, index: Index) -> Iterator[Fault]:
    """What stands between an IP-Adapter that fits the model and an image encoder for it."""
    adapter = index.identify(Path(file.path))
    names = [encoder.name for encoder in recipe.image_encoders if fits(index.identify(Path(encoder.path)), adapter)]
    if len(names) == 1:
        return
    reads = f"{describe_need(adapter)}, which {file.name} reads"
    here = find_fitting(adapter, index.list_catalog(catalog, ["image_encoder"]))
    if names:
        yield Fault("image_encoder", f"{' and '.join(names)} both give {reads}. Leave one of them in the stack.")
    elif not recipe.image_encoders and here:
        yield Fault("image_encoder", f"{' and '.join(here)} both give {reads}. Choose one: image_encoder={here[0]}.")
    elif not recipe.image_encoders:
        yield Fault("image_encoder", f"none in the models folders gives {reads}. {_how_to_get(adapter, catalog)}")
    else:
        given = " and ".join(encoder.name for encoder in recipe.image_encoders)
        instead = f"Choose image_encoder={here[0]}." if here else _how_to_get(adapter, catalog)
        yield Fault("image_encoder", f"{given} does not give {reads}. {instead}")


def _how_to_get(adapter: Identity, catalog: Catalog) -> str:
    known = name_known(adapter)
    command = f", or run `sdbatch pull image_encoder={known}`" if known else ""
    return f"Put the CLIP image encoder that it was trained with into {shown_folder(catalog.target('image_encoder'))}{command}."
