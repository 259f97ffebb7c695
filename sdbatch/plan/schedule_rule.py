"""Whether the samplers of a plan can run the noise schedules of its models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdbatch.cell import Recipe
from sdbatch.errors import Fault, SdbatchError
from sdbatch.families import SAMPLERS, Family, find_family
from sdbatch.families.options import scheduler_options
from sdbatch.weights.index import Index

SHOWN_SAMPLERS = 8

_ZERO_SNR = "rescale_betas_zero_snr"
"""What diffusers calls it, as an option of the schedulers that can do it and in the configs of models."""


def schedule_faults(pairs: Iterable[tuple[Recipe, str]], index: Index) -> Iterator[Fault]:
    """A fault for each sampler that is asked to begin in pure noise (zero terminal SNR) and cannot."""
    told: dict[Fault, None] = {}
    for recipe, name in pairs:
        if not _can_begin_in_noise(name) and _begins_in_noise(recipe, index):
            wanted = f"cannot run {recipe.checkpoint.name}, whose noise schedule ends in pure noise (zero terminal SNR)"
            told[Fault("sampler", f"{name} {wanted}. Choose one of {_able(find_family(recipe.family))}.")] = None
    yield from told


def _can_begin_in_noise(name: str) -> bool:
    options = scheduler_options(SAMPLERS[name].scheduler)
    return not options or _ZERO_SNR in options


def _able(family: Family) -> str:
    names = [name for name in family.samplers if _can_begin_in_noise(name)]
    return ", ".join(names[:SHOWN_SAMPLERS]) + (", ..." if len(names) > SHOWN_SAMPLERS else "")


def _begins_in_noise(recipe: Recipe, index: Index) -> bool:
    """As the pipeline finds out: by the recipe, else by the checkpoint's header, else by the family's config."""
    if recipe.zero_snr is not None:
        return recipe.zero_snr
    try:
        if index.identify(Path(recipe.checkpoint.path)).zero_snr:
            return True
        config = json.loads((Path(recipe.config) / "scheduler/scheduler_config.json").read_bytes())
    except (SdbatchError, OSError, ValueError):
        return False  # told where it is read
    return config.get(_ZERO_SNR) is True
