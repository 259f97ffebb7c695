"""What each task needs, and whether a sweep gives it: keys that do nothing, strengths that run no step, pictures that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sdbatch.cell import WeightFile
from sdbatch.families import FAMILIES, Family
from sdbatch.plan.draft import Draft
from sdbatch.plan.kind import iter_values
from sdbatch.plan.picture import has_white, read_size
from sdbatch.plan.tree import get

TASKS: dict[str, tuple[str, ...]] = {
    "txt2img": (),
    "hires": ("strength", "steps", "scale", "width", "height", "upscaler"),
    "img2img": ("image", "strength", "resize"),
    "inpaint": ("image", "strength", "resize", "mask", "mask_blur", "fill", "paste"),
}
"""Task -> the keys of `task` that it uses."""

NEEDED = {
    "image": "give the picture to start from",
    "strength": "give the share of the steps that are run, from 0 to 1",
    "mask": "give a picture that is white where the image is made anew",
    "upscaler": "give a way of enlarging, such as latent or lanczos, or a network of models/upscale_models",
}
"""Keys that a task which uses them cannot do without."""

MOST_PX = 16_384
"""Of a side of an image."""
_SHAPES_DIFFER = 0.02
"""Share by which the shapes of a picture and its mask may differ, as when both were rounded to whole pixels."""


def task_faults(draft: Draft) -> Iterator[tuple[str, str]]:
    """(key path, message) of keys that a task has no use for or lacks, and of strengths that run no step."""
    for key in dict.fromkeys(key for keys in TASKS.values() for key in keys):
        for _, (name, value) in iter_values(draft, ("task.name", f"task.{key}")):
            if message := _fault(str(name), key, value):
                yield f"task.{key}", message
    yield from _idle_strengths(draft)
    yield from _hires_faults(draft)


def _fault(name: str, key: str, value: Any) -> str | None:
    if name not in TASKS:
        return None  # told by its own rule
    uses = TASKS[name]
    if key in uses:
        return f"is not set; {NEEDED[key]}." if value is None and key in NEEDED else None
    owners = [f"task={task}" for task, keys in TASKS.items() if key in keys]
    named = " or ".join(filter(None, [", ".join(owners[:-1]), owners[-1]]))
    return None if value is None else f"{value} does nothing in task={name}. Set {named}, or leave it out."


def _idle_strengths(draft: Draft) -> Iterator[tuple[str, str]]:
    """A strength of 0 is a way to ask for the picture itself; one that comes to no step is a mistake."""
    for group, (steps, own_steps, strength) in iter_values(draft, ("steps", "task.steps", "task.strength")):
        family = _family(draft, group)
        count = own_steps or steps
        numbers = isinstance(count, int) and count >= 1 and isinstance(strength, int | float) and 0 < strength <= 1
        if family and numbers and family.skipped_steps(count, strength) >= count:
            told = f"{strength:g} of {count} steps is none at all. Raise one of them, or set 0 for the picture itself."
            yield "task.strength", told


def _hires_faults(draft: Draft) -> Iterator[tuple[str, str]]:
    """What the second pass of a hires fix cannot make: half a size, a smaller picture, a side that the family does not make."""
    sizes = ("width", "height", "task.scale", "task.width", "task.height")
    for group, (name, *values) in iter_values(draft, ("task.name", *sizes)):
        family = _family(draft, group)
        if name != "hires" or family is None or not all(isinstance(value, int | float | None) for value in values):
            continue  # told by the rules
        first, scale, asked = values[:2], values[2], values[3:]
        if asked != [None, None]:
            yield from _side_faults(family, first, asked)
            if "task.scale" in draft.columns:
                yield "task.scale", "does nothing beside task.width and task.height. Leave either out."
        elif scale is None:
            yield "task.scale", "is not set; give a factor, or task.width and task.height."
        elif max(first) * scale > MOST_PX:
            yield "task.scale", f"{scale:g} times {first[0]}x{first[1]} is more than {MOST_PX} px a side. Lower it."


def _side_faults(family: Family, first: Sequence[int], asked: Sequence[int | None]) -> Iterator[tuple[str, str]]:
    for key, side, before in zip(("width", "height"), asked, first, strict=True):
        if side is None:
            yield f"task.{key}", "is not set; give both sides, or neither and task.scale."
        elif side < before:
            yield f"task.{key}", f"{side} px is less than the {before} px of the first pass. Raise it, or lower {key}."
        elif side % 8 == 0 and side % family.size_multiple_px:  # what is no multiple of 8 is told by the rules
            yield f"task.{key}", f"{side} px cannot be made with {family.title}; sizes are multiples of {family.size_multiple_px} px."


def _family(draft: Draft, group: int) -> Family | None:
    return FAMILIES.get(str(get(draft.groups[group], "family.name")))


def picture_faults(draft: Draft, files: Mapping[tuple[str, str], WeightFile]) -> Iterator[tuple[str, str]]:
    """(key path, message) of masks that mask nothing, or are of another shape than their pictures.

    Both are resized alike, so they would not lie on each other.
    """
    size_of, masks = cache(read_size), cache(has_white)
    for _, (image, mask) in iter_values(draft, ("task.image", "task.mask")):
        found = [file for asked in (image, mask) if (file := files.get(("image", str(asked)))) is not None]
        if len(found) < 2:
            continue  # told where it is not there
        (width, height), (mask_width, mask_height) = (size_of(Path(file.path)) for file in found)
        if abs(width * mask_height - mask_width * height) > _SHAPES_DIFFER * width * mask_height:
            told = f"{mask} is {mask_width}x{mask_height}, {image} is {width}x{height}. Give a mask of the picture's shape."
            yield "task.mask", told
        elif not masks(Path(found[1].path)):
            yield "task.mask", f"{mask} has no white in it, so nothing would be made anew."
