"""The denoising loop: from each image's own noise to latents, many different images at once.

Shapes: B images, N = B or 2B (with guidance: all unconditional ones first), C latent channels, H, W latent cells,
T tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdbatch.adapters.controlnet import ControlNetBatch, add_controls
from sdbatch.pipeline.samplers import Schedule


@dataclass(frozen=True, slots=True)
class Conditions:
    """What steers each image of a batch."""

    positive_BTD: Tensor
    negative_BTD: Tensor
    guidance_scales: tuple[float, ...]
    controls: tuple[ControlNetBatch, ...] = ()

    @property
    def is_guided(self) -> bool:
        """Whether any image needs the unconditional pass: at a guidance scale of 1 it cancels out."""
        return any(scale != 1.0 for scale in self.guidance_scales)


def draw_noise(generators: Sequence[torch.Generator], shape_CHW: tuple[int, int, int]) -> Tensor:
    """Each image's first noise from its own CPU generator in float32, whatever the device, dtype or batch: [B, C, H, W]."""
    return torch.cat([torch.randn((1, *shape_CHW), generator=generator, dtype=torch.float32) for generator in generators])


def denoise(unet: nn.Module, schedule: Schedule, noise_BCHW: Tensor, conditions: Conditions, on_step: Callable[[int], None]) -> Tensor:
    """The latents of a batch, float32: [B, C, H, W].

    The latents stay in float32 between steps, so that samplers round alike under every dtype of the model.

    Args:
        unet: Predicts the noise.
        schedule: The sampler's steps.
        noise_BCHW: From `draw_noise`.
        conditions: What steers each image.
        on_step: Called with the number of finished model calls.
    """
    device, dtype = conditions.positive_BTD.device, conditions.positive_BTD.dtype
    latents = noise_BCHW.to(device) * schedule.scheduler.init_noise_sigma
    embeds = conditions.positive_BTD
    if conditions.is_guided:
        embeds = torch.cat([conditions.negative_BTD, conditions.positive_BTD])
    guidance = torch.tensor(conditions.guidance_scales, dtype=torch.float32).to(device).view(-1, 1, 1, 1)
    calls = len(schedule.timesteps)
    on_device = schedule.timesteps.to(device)
    for index, timestep in enumerate(schedule.timesteps):
        wide = torch.cat([latents, latents]) if conditions.is_guided else latents
        given = schedule.scale_input(wide, timestep).to(dtype)
        extra = add_controls(conditions.controls, (index, calls), given, on_device[index], embeds)
        prediction = unet(given, on_device[index], encoder_hidden_states=embeds, return_dict=False, **extra)[0].float()
        if conditions.is_guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        latents = schedule.step(prediction, timestep, latents)
        on_step(index + 1)
    return latents
