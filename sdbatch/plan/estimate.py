"""What a plan will load and fill, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdbatch.cell import Recipe
from sdbatch.errors import SdbatchError
from sdbatch.plan.plan import Plan, Slice
from sdbatch.plan.tree import get
from sdbatch.weights.reader import read_header
from sdbatch.weights.upscaler import USUAL_SCALE, find_scale

PNG_BYTES_PER_PIXEL = 1.8
"""Of photo-like pictures at the compression level that is used; flat drawings take less."""
SHOWN_RECIPES = 12


@dataclass(frozen=True)
class Estimate:
    """Costs of a plan."""

    loads: str
    """How often each kind of weight changes, in the plan's order."""
    recipes: list[str]
    disk_gb: float

    @property
    def disk(self) -> str:
        """The disk space as people say it."""
        return f"{self.disk_gb:.1f} GB" if self.disk_gb >= 1.0 else f"{math.ceil(self.disk_gb * 1000)} MB"


def estimate(plan: Plan) -> Estimate:
    """Count loads in plan order and pixels."""
    made, left = plan.recipe_cells
    counts = (made + left).tolist()
    texts = [f"{describe(recipe)}: {images(count)}" for recipe, count in zip(plan.recipes, counts, strict=True)]
    if len(texts) > SHOWN_RECIPES:
        texts = [*texts[:SHOWN_RECIPES], f"... and {len(texts) - SHOWN_RECIPES} more"]
    return Estimate(_loads(plan.recipes), texts, _pixels(plan) * PNG_BYTES_PER_PIXEL / 1e9)


def images(count: int) -> str:
    """`1 image`, `64 images`."""
    return "1 image" if count == 1 else f"{count} images"


def describe(recipe: Recipe) -> str:
    """A recipe in one line: checkpoint, then what is added to it."""
    added = [file.name for _, group, file in recipe.parts() if group != "checkpoint"]
    return " + ".join([recipe.model_name, *added])


def _loads(recipes: list[Recipe]) -> str:
    parts = {
        "checkpoint": [recipe.checkpoint for recipe in recipes],
        "merge": [recipe.merge for recipe in recipes],
        "VAE": [recipe.vae for recipe in recipes],
        "upscaler": [recipe.upscaler for recipe in recipes],
        "LoRA stack": [recipe.loras for recipe in recipes],
        "embeddings": [recipe.embeddings for recipe in recipes],
        "hypernetworks": [recipe.hypernetworks for recipe in recipes],
        "ControlNets": [recipe.controlnets for recipe in recipes],
        "IP-Adapters": [recipe.ip_adapters for recipe in recipes],
        "image encoders": [recipe.image_encoders for recipe in recipes],
    }
    told: list[str] = []
    for name, values in parts.items():
        changes = sum(1 for before, after in zip([None, *values], values, strict=False) if after and after != before)
        if changes:
            told.append(f"{changes} {name}{'s' if changes > 1 and not name.endswith('s') else ''}")
    return ", ".join(told)


def _pixels(plan: Plan) -> float:
    """Pixels of all finished pictures."""
    own_scale = np.array([_scale(recipe) for recipe in plan.recipes])
    total = 0.0
    for cells in plan.iter_slices():
        scale = _numbers(plan, "upscaler.scale", cells)
        scale = np.where(np.isnan(scale), own_scale[cells.recipe], scale)
        total += float((_numbers(plan, "width", cells) * _numbers(plan, "height", cells) * scale**2).sum())
    return total


def _numbers(plan: Plan, key: str, cells: Slice) -> npt.NDArray[np.float64]:
    """The value of a key in each of some cells; NaN where it is unset."""
    found = np.array([get(config, key) for config in plan.groups], dtype=np.float64)[cells.group]
    column = plan.columns.get(key)
    if column is None:
        return found
    codes = column.at(cells.points)
    return np.where(codes >= 0, np.array([*column.values, None], dtype=np.float64)[codes], found)


def _scale(recipe: Recipe) -> float:
    """By how much a recipe's upscaler enlarges, as far as its header tells."""
    if recipe.upscaler is None:
        return 1.0
    try:
        return float(find_scale(read_header(Path(recipe.upscaler.path))) or USUAL_SCALE)
    except SdbatchError:
        return float(USUAL_SCALE)  # a rehearsal needs no file that can be read
