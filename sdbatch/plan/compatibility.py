"""Whether the parts of every recipe fit together, from their headers, before a byte of weights is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdbatch.cell import SINGLE_PARTS, Recipe, WeightFile
from sdbatch.errors import Fault, SdbatchError
from sdbatch.families import FAMILIES
from sdbatch.plan.image_encoder import encoder_faults
from sdbatch.plan.merge_rule import merge_faults
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.fit import describe, find_mismatch
from sdbatch.weights.identity import Identity
from sdbatch.weights.index import Index
from sdbatch.weights.upscaler import missing_library

SHOWN_FITTING = 6

_MODELS = {"tiny": "tiny", "sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "flux": "flux_dev"}
"""What a checkpoint's header says -> the `model=` that is made for it."""
_MODELS_OF_VARIANT = {("sd2", "768-v"): "sd2_768", ("sdxl", "refiner"): "sdxl_refiner", ("flux", "schnell"): "flux_schnell"}


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
    if message := find_mismatch(base, "checkpoint", base) or _find_wrong_model(base, recipe):
        yield Fault("checkpoint", f"{recipe.checkpoint.name} {message}.")
        return
    yield from _missing_parts(recipe, base, catalog, index)
    yield from _idle_parts(recipe)
    misfits = list(_find_misfits(recipe, base, catalog, index))
    yield from misfits
    if recipe.merge is not None:
        told = {fault.key for fault in misfits}
        yield from (fault for fault in merge_faults(recipe, recipe.merge) if fault.key not in told)


def _find_misfits(recipe: Recipe, base: Identity, catalog: Catalog, index: Index) -> Iterator[Fault]:
    """Every part that does not fit the checkpoint, with what would."""
    for key, group, file in recipe.parts():
        try:
            message = find_mismatch(index.identify(Path(file.path)), group, base)
        except SdbatchError as error:
            yield Fault(key, str(error))
            continue
        if message is not None:
            yield Fault(key, f"{file.name} {message}. {_fitting(group, base, catalog, index)}")
        elif group == "upscaler" and (told := missing_library()):
            yield Fault(key, f"{file.name}: {told}")
        elif group == "ip_adapter":
            yield from _encoder_faults(recipe, file, catalog, index)


def _encoder_faults(recipe: Recipe, file: WeightFile, catalog: Catalog, index: Index) -> Iterator[Fault]:
    try:
        yield from encoder_faults(recipe, file, catalog, index)
    except SdbatchError:
        return  # an image encoder that cannot be read is told in its own turn


def _find_wrong_model(base: Identity, recipe: Recipe) -> str | None:
    """Why the checkpoint is not one of the family that `model=` has set up; None when it is, or when the header does not tell."""
    if base.family is None:
        return None
    family = "sd1" if base.family == "tiny" else base.family
    if family not in FAMILIES:
        return f"is {describe(base)}, which sdbatch does not run. Families: {', '.join(FAMILIES)}"
    expected = None if base.format == "folder" else _read_width(Path(recipe.config))
    differs = expected is not None and base.cross_attention_width is not None and expected != base.cross_attention_width
    if family == recipe.family and not differs and not _differs_in_guidance(base, Path(recipe.config)):
        return None
    model = _MODELS_OF_VARIANT.get((base.family, base.variant or ""), _MODELS[base.family])
    told = f" ({expected}-wide)" if differs else " without guidance" if base.variant == "dev" else " with guidance"
    set_up = FAMILIES[recipe.family].title + (told if family == recipe.family else "")
    return f"is {describe(base)}, but the model is set up as {set_up}: use model={model}"


def _differs_in_guidance(base: Identity, config: Path) -> bool:
    """FLUX dev and schnell have the same widths; what differs is whether guidance is an input, and the schedule."""
    has_guidance = _read_json(config / "transformer" / "config.json").get("guidance_embeds")
    return base.format != "folder" and has_guidance is not None and base.variant == ("schnell" if has_guidance else "dev")


def _idle_parts(recipe: Recipe) -> Iterator[Fault]:
    """What the model has no place for: it would be loaded and do nothing."""
    index = _read_json(Path(recipe.config) / "model_index.json")
    for part in SINGLE_PARTS:
        if recipe.part(part) is not None and index.get(part) == [None, None]:
            yield Fault(part, f"this model has no {part}. Set {part}=baked.")


def _missing_parts(recipe: Recipe, base: Identity, catalog: Catalog, index: Index) -> Iterator[Fault]:
    """What the checkpoint lacks and nothing replaces."""
    absent = _read_json(Path(recipe.config) / "model_index.json")
    for part in FAMILIES[recipe.family].components[1:]:
        if part.name in base.parts or absent.get(part.name) == [None, None] or part.name not in SINGLE_PARTS:
            continue
        if recipe.part(part.name) is None:
            told = f"{recipe.checkpoint.name} has none of its own; set {part.name}=NAME. {_fitting(part.name, base, catalog, index)}"
            yield Fault(part.name, told)


def _read_width(config: Path) -> int | None:
    """Width of the text that the denoiser of a config folder reads."""
    for name, key in (("unet", "cross_attention_dim"), ("transformer", "joint_attention_dim")):
        width = _read_json(config / name / "config.json").get(key)
        if isinstance(width, int):
            return width
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """A config; empty when it is not there: what reads it for good will say so."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fitting(group: str, base: Identity, catalog: Catalog, index: Index) -> str:
    """The files of the models folders that would fit."""
    names = [
        item.name for item in index.list_catalog(catalog, [group]) if item.identity and find_mismatch(item.identity, group, base) is None
    ]
    if not names:
        return f"No {group} in the models folders fits."
    more = f", ... ({len(names)})" if len(names) > SHOWN_FITTING else ""
    return f"Fitting here: {', '.join(names[:SHOWN_FITTING])}{more}."
