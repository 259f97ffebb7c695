"""Builds the diffusers scheduler of a sampler, such that each image draws its noise from its own seed."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
from torch import Tensor

from sdbatch.cell import Sampler
from sdbatch.errors import CellError, ConfigError, did_you_mean
from sdbatch.pipeline.libraries import importing_samplers

_STEP_INPUTS = frozenset({"self", "model_output", "timestep", "sample", "return_dict", "generator", "variance_noise"})


@dataclass(frozen=True, slots=True)
class Schedule:
    """A scheduler with its timesteps set, for one batch."""

    scheduler: Any
    timesteps: Tensor
    """On the CPU, one per model call: schedulers look numbers up by it, which on a GPU would wait for the device."""
    step_options: dict[str, Any]
    _moved: dict[torch.device, Tensor] = field(default_factory=dict[torch.device, Tensor])

    @property
    def first_sigma(self) -> Any:
        """What the first noise is multiplied by; samplers of flows have none."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def timesteps_on(self, device: torch.device) -> Tensor:
        """The timesteps for the model, moved once."""
        if device not in self._moved:
            self._moved[device] = self.timesteps.to(device)
        return self._moved[device]

    def scale_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents as the model wants them at this timestep."""
        return self.scheduler.scale_model_input(latents, timestep)

    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Clean latents under the noise of a step."""
        timestep = self.timesteps[step : step + 1]
        if hasattr(self.scheduler, "scale_noise"):  # of FlowMatchEuler alone
            return self.scheduler.scale_noise(clean, timestep, noise)
        return self.scheduler.add_noise(clean, noise, timestep)

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents after this step."""
        if getattr(self.scheduler, "noise_sampler_seed", None) and self.scheduler.noise_sampler is None:
            self.scheduler.noise_sampler = _noise_on_cpu(self.scheduler, latents)
        return self.scheduler.step(prediction, timestep, latents, **self.step_options, return_dict=False)[0]


@dataclass(frozen=True, slots=True)
class Draw:
    """What a batch asks of its sampler."""

    steps: int
    """As asked; second-order samplers call the model almost twice as often."""
    seeds: Sequence[int]
    generators: Sequence[torch.Generator]
    """Of each image; the sampler goes on where the first noise ended."""
    image_tokens: int = 0
    """Of a picture in a model that predicts the flow: larger pictures spend more steps in the noise."""
    skipped_steps: int | None = None
    """Steps that are left out at the noisy end; None: denoising starts from noise, not from a picture."""


def build_schedule(sampler: Sampler, config: Mapping[str, Any], draw: Draw) -> Schedule:
    """The scheduler of a sampler for one batch.

    Args:
        sampler: From the sampler table.
        config: The model's scheduler config: its noise levels and what it predicts.
        draw: What the batch asks.

    Raises:
        ConfigError: an option the sampler's class does not know, or a schedule of the model it cannot run.
        CellError: the sampler cannot do so many steps.
    """
    cls = _class_of(sampler.scheduler)
    constructor, step_names = _signatures(sampler.scheduler)
    options = dict(sampler.options)
    for name in options:
        if name not in constructor | step_names:
            known = did_you_mean(name, constructor | step_names)
            raise ConfigError(f"sampler.options.{name}: {sampler.name} ({sampler.scheduler}) has no such option. {known}")
    step_options: dict[str, Any] = {name: value for name, value in options.items() if name not in constructor}
    if "generator" in inspect.signature(cls.step).parameters:
        step_options["generator"] = list(draw.generators)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in constructor:
        raise ConfigError(f"sampler: {sampler.name} cannot run the zero-SNR schedule of this model. Choose euler, ddim or dpmpp_2m.")
    built = {name: value for name, value in options.items() if name in constructor}
    if "flow_shift" in constructor and "shift" in config:
        built.setdefault("flow_shift", config["shift"])  # two names for one thing in diffusers
    try:
        scheduler = copy.deepcopy(_template(sampler.scheduler, json.dumps([dict(config), built], sort_keys=True)))
        if "noise_sampler_seed" in constructor:
            scheduler.noise_sampler_seed = list(draw.seeds)  # it ignores generators
        scheduler.set_timesteps(**_timing(scheduler, config, draw), device="cpu")
    except ValueError as error:
        raise CellError(f"sampler {sampler.name} cannot be set up for {draw.steps} steps: {error}") from error
    # Told where it begins, a scheduler does not look for the first timestep, of which two may be alike.
    begin = (draw.skipped_steps or 0) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return Schedule(scheduler, scheduler.timesteps[begin:], step_options)


def _timing(scheduler: Any, config: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
    """The steps as the scheduler wants to be told them. A flow's go from 1 down in equal steps, shifted by the picture's size.

    Source: diffusers' FluxPipeline.
    """
    timing: dict[str, Any] = {"num_inference_steps": draw.steps}
    if "shift" not in config:
        return timing
    if not scheduler.config.get("use_flow_sigmas", False):
        timing["sigmas"] = np.linspace(1.0, 1 / draw.steps, draw.steps)
    if config.get("use_dynamic_shifting"):
        slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
        timing["mu"] = draw.image_tokens * slope + config["base_shift"] - slope * config["base_image_seq_len"]
    return timing


def _noise_on_cpu(scheduler: Any, latents: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """DPM++ SDE's noise as the scheduler would build it, but drawn on the CPU as all noise is: a GPU's generator gives other numbers."""
    sigmas: Tensor = scheduler.sigmas
    like = torch.zeros(latents.shape, dtype=latents.dtype)
    draw: Any = BrownianTreeNoiseSampler(like, sigmas[sigmas > 0].min().item(), sigmas.max().item(), scheduler.noise_sampler_seed)
    return lambda sigma, sigma_next: draw(sigma, sigma_next).to(latents.device)


@lru_cache(maxsize=16)
def _template(scheduler: str, settings: str) -> Any:
    """A scheduler before its timesteps are set. Some take half a second to build, so each batch gets a copy."""
    config, options = json.loads(settings)
    cls = _class_of(scheduler)
    constructor, _ = _signatures(scheduler)
    with importing_samplers():  # it looks at all that are compatible
        return cls.from_config({name: value for name, value in config.items() if name in constructor}, **options)


@cache
def _class_of(scheduler: str) -> Any:
    with importing_samplers():
        return getattr(diffusers, scheduler)


@cache
def _signatures(scheduler: str) -> tuple[frozenset[str], frozenset[str]]:
    """The option names of a scheduler's constructor and of its step."""
    cls = _class_of(scheduler)
    constructor = frozenset(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    return constructor, frozenset(inspect.signature(cls.step).parameters) - _STEP_INPUTS
