"""Builds the diffusers scheduler of a sampler, such that each image draws its noise from its own seed."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import diffusers
import torch
from torch import Tensor

from sdbatch.cell import Sampler
from sdbatch.errors import CellError, ConfigError, did_you_mean

_STEP_INPUTS = frozenset({"self", "model_output", "timestep", "sample", "return_dict", "generator", "variance_noise"})


@dataclass(frozen=True, slots=True)
class Schedule:
    """A scheduler with its timesteps set, for one batch."""

    scheduler: Any
    timesteps: Tensor
    """On the CPU, one per model call: schedulers look numbers up by it, which on a GPU would wait for the device."""
    step_options: dict[str, Any]

    def scale_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents as the model wants them at this timestep."""
        return self.scheduler.scale_model_input(latents, timestep)

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents after this step."""
        return self.scheduler.step(prediction, timestep, latents, **self.step_options, return_dict=False)[0]


def build_schedule(
    sampler: Sampler, config: Mapping[str, Any], steps: int, seeds: Sequence[int], generators: Sequence[torch.Generator]
) -> Schedule:
    """The scheduler of a sampler for one batch.

    Args:
        sampler: From the sampler table.
        config: The model's scheduler config: its noise levels and what it predicts.
        steps: How many are asked; second-order samplers call the model almost twice as often.
        seeds: Of each image.
        generators: Of each image; the sampler goes on where the first noise ended.

    Raises:
        ConfigError: an option the sampler's class does not know.
        CellError: the sampler cannot do so many steps.
    """
    cls: Any = getattr(diffusers, sampler.scheduler)
    constructor, step_names = _signatures(sampler.scheduler)
    options = dict(sampler.options)
    for name in options:
        if name not in constructor | step_names:
            known = did_you_mean(name, constructor | step_names)
            raise ConfigError(f"sampler.options.{name}: {sampler.name} ({sampler.scheduler}) has no such option. {known}")
    step_options: dict[str, Any] = {name: value for name, value in options.items() if name not in constructor}
    if "generator" in inspect.signature(cls.step).parameters:
        step_options["generator"] = list(generators)
    built = {name: value for name, value in options.items() if name in constructor}
    try:
        scheduler = copy.deepcopy(_template(sampler.scheduler, json.dumps([dict(config), built], sort_keys=True)))
        if "noise_sampler_seed" in constructor:
            scheduler.noise_sampler_seed = list(seeds)  # it ignores generators
        scheduler.set_timesteps(steps, device="cpu")
    except ValueError as error:
        raise CellError(f"sampler {sampler.name} cannot be set up for {steps} steps: {error}") from error
    return Schedule(scheduler, scheduler.timesteps, step_options)


@lru_cache(maxsize=16)
def _template(scheduler: str, settings: str) -> Any:
    """A scheduler before its timesteps are set. Some take half a second to build, so each batch gets a copy."""
    config, options = json.loads(settings)
    cls: Any = getattr(diffusers, scheduler)
    return cls.from_config(config, **options)


@cache
def _signatures(scheduler: str) -> tuple[frozenset[str], frozenset[str]]:
    """The option names of a scheduler's constructor and of its step."""
    cls: Any = getattr(diffusers, scheduler)
    constructor = frozenset(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    return constructor, frozenset(inspect.signature(cls.step).parameters) - _STEP_INPUTS
