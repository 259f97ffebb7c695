"""Where the denoising of a batch starts: in noise, or in pictures under as much noise as their strength says.

What is drawn from each image's own generator, and in which order, is as in diffusers: the sample of the picture, the
noise, the sample of the picture without what is masked.

Shapes: B images, C latent channels, H, W latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdbatch.cell import Cell, Source
from sdbatch.families import Family
from sdbatch.pipeline.decode import latent_shape, vae_scale
from sdbatch.pipeline.denoise import Kept, draw_noise
from sdbatch.pipeline.encode import PictureEncoder, Size, binary_mask, sample
from sdbatch.pipeline.samplers import Schedule


@dataclass(frozen=True, slots=True)
class Start:
    """The first latents of a batch, and what is kept of its pictures."""

    latents_BCHW: Tensor
    kept: Kept | None = None
    """What stays as it is; None when everything is made anew, or when the network sees to it."""
    beside_BCHW: Tensor | None = None
    """What an inpainting network also sees: the mask in one channel, then the latents of the picture without what is masked."""


class Course(NamedTuple):
    """What is asked of one run of the sampler; a hires fix takes two."""

    size_px: Size
    steps: int
    skipped_steps: int | None
    """At the noisy end; None: it begins in noise."""

    @property
    def run_steps(self) -> int:
        """How many are run; one where none is, so that there is a first."""
        return max(1, self.steps - (self.skipped_steps or 0))


def courses_of(cell: Cell, family: Family) -> list[Course]:
    """The passes of a cell, one after another."""
    skipped = None if cell.source is None else family.skipped_steps(cell.steps, cell.source.strength)
    courses = [Course((cell.width, cell.height), cell.steps, skipped)]
    if (hires := cell.hires) is not None:
        courses.append(Course((hires.width, hires.height), hires.steps, family.skipped_steps(hires.steps, hires.strength)))
    return courses


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the sampler over the images of a batch."""

    course: Course
    schedule: Schedule
    """The steps that are run."""
    generators: list[torch.Generator]
    """One for each image, from which nothing was drawn before."""

    @property
    def size_px(self) -> Size:
        """(width, height) of the images."""
        return self.course.size_px


class Starter:
    """Starts the batches of one device."""

    def __init__(self) -> None:
        self.pictures = PictureEncoder()

    def start(self, cells: Sequence[Cell], own: Pass, vae: nn.Module, *, sees_mask: bool) -> Start:
        """The start of the first pass of a batch of one task, size and strength.

        Args:
            cells: The images.
            own: The pass.
            vae: Reads the pictures.
            sees_mask: The denoiser is an inpainting network.
        """
        sources = [cell.source for cell in cells if cell.source is not None]
        if sources and sources[0].mask is not None:
            return self._start_inpainting(sources, own, vae, sees_mask=sees_mask)
        clean = self._clean(sources, own, vae) if sources else None
        return self.start_on(clean, own, vae, sees_mask=sees_mask)

    def start_on(self, clean_BCHW: Tensor | None, own: Pass, vae: nn.Module, *, sees_mask: bool) -> Start:
        """The start on clean latents, or on none: in noise. Nothing is masked, or all that an inpainting network sees."""
        device = next(vae.parameters()).device
        noise = draw_noise(own.generators, latent_shape(vae, own.size_px)).to(device)
        latents = noise * own.schedule.first_sigma if clean_BCHW is None else add_noise(clean_BCHW, noise, own.schedule)
        return Start(latents, beside_BCHW=self._nothing(vae, own.size_px, len(noise)).to(device) if sees_mask else None)

    def _start_inpainting(self, sources: Sequence[Source], own: Pass, vae: nn.Module, *, sees_mask: bool) -> Start:
        device, shape, is_pure_noise = next(vae.parameters()).device, latent_shape(vae, own.size_px), sources[0].strength == 1.0
        # Convolutions round by the layout; diffusers' inpainting has this one, its img2img the VAE's.
        clean = None if sees_mask and is_pure_noise else self._clean(sources, own, vae).contiguous()
        noise = draw_noise(own.generators, shape).to(device)
        mask = torch.cat([latent_mask(source, own.size_px, vae_scale(vae)) for source in sources]).to(device)
        if is_pure_noise or clean is None:
            latents = noise * own.schedule.first_sigma
        else:
            latents = add_noise(_fill(clean, noise, mask, sources), noise, own.schedule)
        if clean is not None and not sees_mask:
            draw_noise(own.generators, shape)  # diffusers draws a sample of the masked picture for every network
            return Start(latents, Kept(clean, noise, mask))
        masked = sample([self.pictures.masked(vae, source, own.size_px) for source in sources], own.generators)
        return Start(latents, beside_BCHW=torch.cat([mask, masked.to(device)], dim=1))

    def _clean(self, sources: Sequence[Source], own: Pass, vae: nn.Module) -> Tensor:
        pictures = [self.pictures.source(vae, source, own.size_px) for source in sources]
        return sample(pictures, own.generators).to(next(vae.parameters()).device)

    def _nothing(self, vae: nn.Module, size_px: Size, count: int) -> Tensor:
        """What an inpainting network sees of a picture that is masked everywhere."""
        masked = self.pictures.nothing(vae, size_px).most_likely()
        return torch.cat([torch.ones_like(masked[:, :1]), masked], dim=1).expand(count, -1, -1, -1)


def add_noise(clean_BCHW: Tensor, noise_BCHW: Tensor, schedule: Schedule) -> Tensor:
    """Pictures under the noise of the first step that is run; as they are where none is."""
    return schedule.add_noise(clean_BCHW, noise_BCHW, 0) if len(schedule.timesteps) else clean_BCHW


def latent_mask(source: Source, size_px: Size, scale: int) -> Tensor:
    """[1, 1, H, W]: 1 where latents are made anew. Of the pixels of a cell the first one counts, as in diffusers."""
    return binary_mask(source, size_px)[:, :, ::scale, ::scale].float()


def _fill(clean: Tensor, noise: Tensor, mask: Tensor, sources: Sequence[Source]) -> Tensor:
    """The latents with what is masked filled as each image asks."""
    fills = [source.mask.fill for source in sources if source.mask is not None]
    is_noise, is_nothing = (torch.tensor([fill == kind for fill in fills]).view(-1, 1, 1, 1) for kind in ("noise", "nothing"))
    is_noise, is_nothing = is_noise.to(clean.device), is_nothing.to(clean.device)
    return torch.where(is_noise | is_nothing, clean * (1 - mask) + torch.where(is_noise, noise * mask, 0.0), clean)
