"""What a plan will load and fill, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdbatch.cell import SINGLE_PARTS, STACKS, Recipe
from sdbatch.errors import SdbatchError
from sdbatch.plan.plan import Plan, Slice
from sdbatch.plan.tree import get
from sdbatch.weights.reader import read_header
from sdbatch.weights.upscaler import USUAL_SCALE, find_scale

PNG_BYTES_PER_PIXEL = 1.8
"""Of photo-like pictures at the compression level that is used; flat drawings take less."""
SHOWN_RECIPES = 12
TITLES = {
    "vae": "VAE",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "ip_adapter": "IP-Adapter",
    "image_encoder": "image encoder",
}
"""Groups that are not called by their name."""


@dataclass(frozen=True)
class Estimate:
    """Costs of a plan."""

    loads: str
    """How often each kind of weight changes, in the plan's order."""
    recipes: list[str]
    disk_bytes: float
    """Of the images."""
    memory_bytes: int
    """Of the weights of the largest recipe, in the files' own number formats."""
    work_step_px: float
    """Steps times pixels of all cells that are left."""


def estimate(plan: Plan) -> Estimate:
    """Count loads in plan order, pixels and bytes."""
    made, left = plan.recipe_cells
    counts = (made + left).tolist()
    texts = [f"{describe(recipe)}: {images(count)}" for recipe, count in zip(plan.recipes, counts, strict=True)]
    if len(texts) > SHOWN_RECIPES:
        texts = [*texts[:SHOWN_RECIPES], f"... and {len(texts) - SHOWN_RECIPES} more"]
    pixels, work = _pixels(plan)
    return Estimate(_loads(plan.recipes), texts, pixels * PNG_BYTES_PER_PIXEL, max(map(_weight_bytes, plan.recipes), default=0), work)


def image_bytes(plan: Plan) -> float:
    """Of all images of a plan, about."""
    return _pixels(plan)[0] * PNG_BYTES_PER_PIXEL


def size(count: float, rounded: Callable[[float], int] = math.ceil) -> str:
    """Bytes as people say them: `3 MB`, `6.9 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{rounded(count / 1e6)} MB"


def images(count: int) -> str:
    """`1 image`, `64 images`."""
    return "1 image" if count == 1 else f"{count} images"


def describe(recipe: Recipe) -> str:
    """A recipe in one line: checkpoint, then what is added to it."""
    added = [file.name for _, group, file in recipe.parts() if group != "checkpoint"]
    return " + ".join([recipe.model_name, *added])


def _loads(recipes: list[Recipe]) -> str:
    parts: dict[str, list[object]] = {
        "checkpoint": [recipe.checkpoint for recipe in recipes],
        "merge": [recipe.merge for recipe in recipes],
        **{TITLES.get(group, group.replace("_", " ")): [recipe.part(group) for recipe in recipes] for group in SINGLE_PARTS},
        "hires upscaler": [recipe.hires_upscaler for recipe in recipes],
        **{f"{TITLES.get(group, group)} stack": [recipe.stack(group) for recipe in recipes] for group in STACKS},
    }
    told: list[str] = []
    for name, values in parts.items():
        changes = sum(1 for before, after in zip([None, *values], values, strict=False) if after and after != before)
        if changes:
            told.append(f"{changes} {name}{'s' if changes > 1 else ''}")
    return ", ".join(told)


def _weight_bytes(recipe: Recipe) -> int:
    files = [recipe.checkpoint, *(file for _, _, file in recipe.parts())]
    return sum(_file_bytes(Path(file.path)) for file in files)


def _file_bytes(path: Path) -> int:
    """Of a diffusers folder: of the weights in it; 0 for what is not there, as in a rehearsal."""
    files = path.rglob("*.safetensors") if path.is_dir() else [path] if path.is_file() else []
    return sum(file.stat().st_size for file in files)


def _pixels(plan: Plan) -> tuple[float, float]:
    """Pixels of all finished pictures; steps times denoised pixels of those that are not made yet."""
    own_scale = np.array([_scale(recipe) for recipe in plan.recipes])
    finished = work = 0.0
    for cells in plan.iter_slices():
        scale = _numbers(plan, "upscaler.scale", cells)
        scale = np.where(np.isnan(scale), own_scale[cells.recipe], scale)
        pixels, steps = _numbers(plan, "width", cells) * _numbers(plan, "height", cells), _numbers(plan, "steps", cells)
        large = _second_pass(plan, pixels, cells)
        own_steps, strength = np.nan_to_num(_numbers(plan, "task.steps", cells)), _numbers(plan, "task.strength", cells)
        second = np.nan_to_num(large) * np.where(own_steps > 0, own_steps, steps) * np.nan_to_num(strength)
        first = np.where(np.isnan(large), np.nan_to_num(strength, nan=1), 1)  # of a picture that is given, the strength's share
        finished += float((np.where(np.isnan(large), pixels, large) * scale**2).sum())
        work += float((pixels * steps * first + second)[cells.shard >= 0].sum())
    return finished, work


def _second_pass(plan: Plan, pixels: npt.NDArray[np.float64], cells: Slice) -> npt.NDArray[np.float64]:
    """Pixels that a hires fix makes of the first pass's; NaN where there is none."""
    asked = _numbers(plan, "task.width", cells) * _numbers(plan, "task.height", cells)
    return np.where(np.isnan(asked), pixels * _numbers(plan, "task.scale", cells) ** 2, asked)


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
