"""What a written file says of itself: ModelSpec's fields, and the recipe it was made by with the hashes of its sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sdbatch
from sdbatch.cell import WeightFile, content_of
from sdbatch.weights.families import BY_NAME
from sdbatch.weights.identity import Identity

RECIPE_KEY = "sdbatch.merge"
"""Where the recipe is kept, as JSON."""

_KEPT = ("architecture", "implementation", "prediction_type", "resolution", "license", "author", "trigger_phrase")
"""ModelSpec's fields that stay true of what is made from a file."""


def to_metadata(
    title: str, first: Identity, said: Mapping[str, str], recipe: Mapping[str, Any], sources: Sequence[WeightFile]
) -> dict[str, str]:
    """The metadata of a new file.

    Args:
        title: The new file's name.
        first: What the first source is.
        said: The first source's own metadata.
        recipe: How it is made: plain values, files as `WeightFile`.
        sources: Everything that went into it.
    """
    kept = {f"modelspec.{key}": said[f"modelspec.{key}"] for key in _KEPT if f"modelspec.{key}" in said}
    named = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": title, "format": "pt"}
    if first.family in BY_NAME:
        named["modelspec.architecture"] = _architecture(first)
    if first.prediction_type in ("epsilon", "v_prediction"):
        named["modelspec.prediction_type"] = "v" if first.prediction_type == "v_prediction" else "epsilon"
    merged_from = {"modelspec.merged_from": ", ".join(file.name for file in sources)} if len(sources) > 1 else {}
    plain = {"version": sdbatch.__version__, **{key: content_of(value) for key, value in recipe.items()}}
    return {**named, **kept, **merged_from, RECIPE_KEY: json.dumps(plain, ensure_ascii=False)}


def _architecture(identity: Identity) -> str:
    """ModelSpec's name of the family and variant."""
    root = BY_NAME[identity.family or ""].modelspec
    variant = "" if identity.family in ("sd1", "tiny") and identity.variant in ("base", None) else f"-{identity.variant or 'base'}"
    adapter = "/lora" if identity.kind == "lora" else ""
    return f"{root}{variant}{adapter}"
