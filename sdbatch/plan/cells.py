"""One configuration becomes a recipe and a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from sdbatch.cell import (
    SINGLE_PARTS,
    STACKS,
    Cell,
    Control,
    Enlarger,
    Hires,
    ImagePrompt,
    Mask,
    Merge,
    Recipe,
    Sampler,
    Source,
    Strength,
    WeightFile,
)
from sdbatch.families import find_family
from sdbatch.families.enlargers import ENLARGERS
from sdbatch.families.lora_blocks import to_text
from sdbatch.families.samplers import SAMPLERS
from sdbatch.merge.blocks import read_blocks
from sdbatch.plan.identity import canonical, file_group, leaves
from sdbatch.plan.tree import Tree, get, overlay

RECIPE_LEAVES = (
    "engine",
    "family.name",
    "family.config",
    "checkpoint.file",
    "checkpoint.prediction_type",
    *(f"checkpoint.merge.{name}" for name in ("b", "c", "method", "ratio", "blocks", "density", "seed")),
    "checkpoint.zero_snr",
    "checkpoint.ema",
    "memory.dtype",
    "task.upscaler",
    *(f"{group}.file" for group in SINGLE_PARTS),
    *(f"{group}.*.file" for group in STACKS),
)
"""Keys that decide which weights are in memory; all others are the cell's."""


class Files(Protocol):
    """Looks up files by name (`sdbatch.plan.files.FileBook`, or a plan's own record of them)."""

    def weight(self, group: str, asked: str) -> WeightFile:
        """A weight file."""
        ...

    def image(self, asked: str) -> WeightFile:
        """An input picture."""
        ...

    def config(self, asked: str) -> WeightFile:
        """A folder of weightless configs."""
        ...


def recipe_of(config: Tree, files: Files) -> Recipe:
    """The recipe of a configuration."""
    parts: dict[str, Any] = {}
    for group in SINGLE_PARTS:
        if (asked := get(config, f"{group}.file")) is not None:
            parts[group] = files.weight(group, asked)
    for group, field in STACKS.items():
        parts[field] = _stack(config, group, files)
    asked = get(config, "task.upscaler")
    if (group := file_group("task.upscaler", asked)) is not None:
        parts["hires_upscaler"] = files.weight(group, asked)
    return Recipe(
        family=config["family"]["name"],
        config=files.config(config["family"]["config"]).path,
        checkpoint=files.weight("checkpoint", config["checkpoint"]["file"]),
        merge=_merge(config, files),
        strict_loras=tuple(name for name, item in cast(dict[str, Tree], get(config, "lora") or {}).items() if item.get("strict")),
        prediction_type=get(config, "checkpoint.prediction_type"),
        zero_snr=get(config, "checkpoint.zero_snr"),
        ema=get(config, "checkpoint.ema", False),
        dtype=get(config, "memory.dtype", "auto"),
        engine=get(config, "engine", "diffusers"),
        **parts,
    )


def _merge(config: Tree, files: Files) -> Merge | None:
    merge = cast(Tree, get(config, "checkpoint.merge") or {})
    if merge.get("b") is None:
        return None
    third = merge.get("c")
    return Merge(
        b=files.weight("checkpoint", merge["b"]),
        c=None if third is None else files.weight("checkpoint", third),
        method=merge["method"],
        ratio=merge["ratio"],
        blocks=() if merge["blocks"] is None else read_blocks(merge["blocks"]),
        density=merge["density"],
        seed=merge["seed"],
    )


def _stack(config: Tree, group: str, files: Files) -> tuple[WeightFile, ...]:
    """The files of a stack under the names of its items: the name is what prompts, rows and infotext say."""
    items = cast(dict[str, Tree], get(config, group) or {})
    found = [(name, files.weight(group, item["file"])) for name, item in items.items()]
    return tuple(WeightFile(name, file.path, file.sha256) for name, file in found)


def cell_of(config: Tree, recipe: Recipe, files: Files, image_id: str, axes: tuple[tuple[str, Any], ...] = ()) -> Cell:
    """The cell of a configuration."""
    loras = cast(dict[str, Tree], get(config, "lora") or {}).values()
    return Cell(
        image_id=image_id,
        recipe=recipe,
        prompt=config["prompt"],
        negative_prompt=config["negative_prompt"],
        seed=config["seed"],
        sampler=sampler_of(config["sampler"]),
        steps=config["steps"],
        guidance_scale=config["guidance_scale"],
        width=config["width"],
        height=config["height"],
        clip_skip=config["clip_skip"],
        guidance_rescale=get(config, "guidance_rescale", 0.0),
        strengths=tuple(_strength(item) for item in loras),
        hypernetwork_weights=tuple(item["weight"] for item in cast(dict[str, Tree], get(config, "hypernetwork") or {}).values()),
        controls=tuple(_control(item, files) for item in cast(dict[str, Tree], get(config, "controlnet") or {}).values()),
        image_prompts=tuple(_image_prompt(item, files) for item in cast(dict[str, Tree], get(config, "ip_adapter") or {}).values()),
        source=_source(cast(Tree, get(config, "task") or {}), files),
        hires=_hires(config, recipe) if get(config, "task.name") == "hires" else None,
        upscale=get(config, "upscaler.scale"),
        tile_px=get(config, "upscaler.tile_px", 512),
        axes=axes,
        config=canonical(config),
    )


def sampler_of(conf: Mapping[str, Any]) -> Sampler:
    """The sampler of a table name, with the user's further options."""
    known = SAMPLERS[conf["name"]]
    if not conf.get("options"):
        return known
    options = dict(known.options) | conf["options"]
    return Sampler(known.name, known.label, known.schedule, known.scheduler, tuple(sorted(options.items())))


def _strength(item: Tree) -> Strength:
    weight = item["weight"]
    text = item.get("text_encoder_weight")
    return Strength(weight, weight if text is None else text, to_text(item.get("blocks")))


def _control(item: Tree, files: Files) -> Control:
    image = files.image(item["image"])
    return Control(image.path, image.sha256, item.get("preprocessor") or "none", item["weight"], item["start"], item["end"])


def _image_prompt(item: Tree, files: Files) -> ImagePrompt:
    image = files.image(item["image"])
    return ImagePrompt(image.path, image.sha256, item["weight"], item["start"], item["end"])


def _source(task: Tree, files: Files) -> Source | None:
    if task.get("image") is None:
        return None
    image, mask = files.image(task["image"]), None
    if task.get("mask") is not None:
        drawn = files.image(task["mask"])
        mask = Mask(drawn.path, drawn.sha256, task["mask_blur"] or 0, task["fill"] or "original", task["paste"] is not False)
    return Source(image.path, image.sha256, task["strength"], task["resize"] or "stretch", mask)


def _hires(config: Tree, recipe: Recipe) -> Hires:
    task, network = config["task"], recipe.hires_upscaler
    size_px, scale = (task.get("width"), task.get("height")), None
    if size_px[0] is None:
        scale = task["scale"]
        size_px = find_family(recipe.family).enlarged_px((config["width"], config["height"]), scale)
    enlarger = Enlarger(network.name, network.name) if network else ENLARGERS[task["upscaler"]]
    return Hires(*size_px, task["strength"], task.get("steps") or config["steps"], enlarger, scale)


def prune(config: Tree, defaults: Mapping[str, Any]) -> Tree:
    """The part of a configuration that decides the image: what rows, PNG and replay carry."""
    values = {key: get(config, key) for key, _, _ in leaves(config, defaults)}
    empty: Tree = {stack: {} for stack in STACKS}
    return overlay(empty, values)
