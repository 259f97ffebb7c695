"""The denoising loop: from each image's own noise to latents, many different images at once.

Shapes: B images, C latent channels, H, W latent cells, T tokens, D their width, P width of a prompt's summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdbatch.adapters.controlnet import ControlNetBatch
from sdbatch.adapters.ip_adapter import IpAdapterStack
from sdbatch.pipeline.samplers import Schedule
from sdbatch.pipeline.text import Embedding


@dataclass(frozen=True, slots=True)
class Prompts:
    """The embeddings of one prompt per image, all of one length."""

    tokens_BTD: Tensor
    pooled_BP: Tensor | None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What steers each image of a batch."""

    positive: Prompts
    negative: Prompts | None
    """None where the network takes the guidance scale as an input."""
    guidance_scales: tuple[float, ...]
    guidance_rescales: tuple[float, ...]
    controls: tuple[ControlNetBatch, ...] = ()
    ip_adapters: IpAdapterStack | None = None
    """On the network, with the pictures of the batch."""

    @property
    def is_guided(self) -> bool:
        """Whether any image needs the unconditional pass: at a guidance scale of 1 it cancels out."""
        return self.negative is not None and any(scale != 1.0 for scale in self.guidance_scales)


class Denoiser(Protocol):
    """The network of a family together with what steers it, for one batch."""

    def predict(self, latents_BCHW: Tensor, schedule: Schedule, step: int) -> Tensor:
        """What the sampler is to be told at a step, guidance applied: [B, C, H, W], float32."""
        ...


class InTurn:
    """Denoisers that take turns, one for each of the sampler's steps: prompts that change on the way.

    Args:
        by_step: As long as the steps that are run; second-order samplers ask about twice in each.
    """

    def __init__(self, by_step: Sequence[Denoiser]) -> None:
        self.by_step = by_step

    def predict(self, latents_BCHW: Tensor, schedule: Schedule, step: int) -> Tensor:
        """The prediction of the denoiser whose turn it is."""
        turn = step * len(self.by_step) // len(schedule.timesteps)
        return self.by_step[turn].predict(latents_BCHW, schedule, step)


def gather(embeddings: Sequence[Embedding], dtype: torch.dtype) -> Prompts:
    """The embeddings of a batch side by side."""
    summaries = [embedding.pooled_P for embedding in embeddings if embedding.pooled_P is not None]
    tokens = torch.stack([embedding.tokens_TD for embedding in embeddings]).to(dtype)
    return Prompts(tokens, torch.stack(summaries).to(dtype) if summaries else None)


def draw_noise(generators: Sequence[torch.Generator], shape_CHW: tuple[int, int, int]) -> Tensor:
    """Each image's first noise from its own CPU generator in float32, whatever the device, dtype or batch: [B, C, H, W]."""
    return torch.cat([torch.randn((1, *shape_CHW), generator=generator, dtype=torch.float32) for generator in generators])


@dataclass(frozen=True, slots=True)
class Kept:
    """What inpainting keeps of pictures: outside of the mask, the latents are theirs at every step."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    mask_B1HW: Tensor
    """1 where the image is made anew."""

    def restore(self, latents_BCHW: Tensor, schedule: Schedule, step: int) -> Tensor:
        """The latents after a step with what is kept put back, under the noise of the next one."""
        clean = self.clean_BCHW
        if step + 1 < len(schedule.timesteps):
            clean = schedule.add_noise(clean, self.noise_BCHW, step + 1)
        return (1 - self.mask_B1HW) * clean + self.mask_B1HW * latents_BCHW


def denoise(denoiser: Denoiser, schedule: Schedule, latents_BCHW: Tensor, on_step: Callable[[], None], kept: Kept | None = None) -> Tensor:
    """The latents of a batch, float32: [B, C, H, W].

    The latents stay in float32 between steps, so that samplers round alike under every dtype of the model.

    Args:
        denoiser: Predicts the noise, the velocity or the flow.
        schedule: The sampler's steps.
        latents_BCHW: Where it starts, on the model's device (`sdbatch.pipeline.start`).
        on_step: Called after each model call.
        kept: What is put back after each step.
    """
    latents = latents_BCHW
    for step, timestep in enumerate(schedule.timesteps):
        latents = schedule.step(denoiser.predict(latents, schedule, step), timestep, latents)
        if kept is not None:
            latents = kept.restore(latents, schedule, step)
        on_step()
    return latents
