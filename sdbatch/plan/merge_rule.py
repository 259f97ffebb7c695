"""Which checkpoints can be merged, from their headers, before one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sdbatch.cell import Merge, Recipe
from sdbatch.errors import Fault, WeightFileError
from sdbatch.merge.table import find_fault
from sdbatch.weights.reader import read_header

Shapes = dict[str, tuple[int, ...]]

_DENOISERS = ("model.diffusion_model.", "unet.", "transformer.")
"""How the denoiser's tensors begin in single files and in folders. Files that spell them apart are compared when they are opened."""
_FIRST_CONVOLUTION = ("input_blocks.0.0.weight", "conv_in.weight")


def merge_faults(recipe: Recipe, merge: Merge) -> Iterator[Fault]:
    """What keeps a recipe's checkpoint from being merged with the others."""
    if found := find_fault(merge):
        yield Fault(f"checkpoint.merge.{found[0]}", found[1])
    if recipe.ema:
        yield Fault("checkpoint.ema", "averaged weights cannot be merged. Set checkpoint.ema=false.")
    first = recipe.checkpoint
    for letter, other in (("b", merge.b), ("c", merge.c)):
        if other is None:
            continue
        try:
            differing = list(_differing(_shapes(first.path, first.sha256), _shapes(other.path, other.sha256)))
        except WeightFileError:
            continue  # told where the file is identified
        if differing:
            told = f"{other.name} cannot be merged with {first.name}: {len(differing)} tensors differ ({differing[0]})"
            yield Fault(f"checkpoint.merge.{letter}", f"{told}. Merge checkpoints of one family and variant.")


@lru_cache(maxsize=64)
def _shapes(path: str, sha256: str) -> dict[str, Shapes]:
    """Prefix -> shapes of the denoiser's weights below it. The hash is the cache's: a path may get another file."""
    del sha256
    tensors = read_header(Path(path)).tensors
    return {
        prefix: {
            name.removeprefix(prefix): info.shape
            for name, info in tensors.items()
            if name.startswith(prefix) and name.endswith((".weight", ".bias"))
        }
        for prefix in _DENOISERS
    }


def _differing(first: dict[str, Shapes], other: dict[str, Shapes]) -> Iterator[str]:
    for prefix in _DENOISERS:
        ours, theirs = first[prefix], other[prefix]
        if not ours or not theirs:
            continue
        for name in ours.keys() ^ theirs.keys():
            yield f"{prefix}{name} is only in the {'first' if name in ours else 'other'}"
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name] and not _has_more_inputs(name, ours[name], theirs[name]):
                yield f"{prefix}{name} is {list(ours[name])} in the first, {list(theirs[name])} in the other"


def _has_more_inputs(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """An inpainting model takes another one in: its further input channels stay its own."""
    return name in _FIRST_CONVOLUTION and ours[0] == theirs[0] and ours[1] > theirs[1]
