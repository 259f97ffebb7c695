"""Where the denoising of a batch starts: in noise, or in pictures under as much noise as their strength says.

What is drawn from each image's own generator, and in which order, is as in diffusers: the sample of the picture, the
noise, the sample of the picture without what is masked.

Shapes: B images, C latent channels, H, W latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdbatch.cell import Cell, Source
from sdbatch.pipeline.decode import latent_shape, vae_scale
from sdbatch.pipeline.denoise import Kept, draw_noise
from sdbatch.pipeline.encode import PictureEncoder, Size, binary_mask
from sdbatch.pipeline.samplers import Schedule


@dataclass(frozen=True, slots=True)
class Start:
    """The first latents of a batch, and what is kept of its pictures."""

    latents_BCHW: Tensor
    kept: Kept | None = None
    """What stays as it is; None when everything is made anew, or when the network sees to it."""
    beside_BCHW: Tensor | None = None
    """What an inpainting network also sees: the mask in one channel, then the latents of the picture without what is masked."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What one image starts from, [1, C, H, W]."""

    noise: Tensor
    clean: Tensor
    masked: Tensor | None = None


class Starter:
    """Starts the batches of one device.

    Args:
        pictures: What was encoded before.
    """

    def __init__(self) -> None:
        self.pictures = PictureEncoder()

    def start(
        self, cells: Sequence[Cell], generators: Sequence[torch.Generator], schedule: Schedule, vae: nn.Module, *, sees_mask: bool
    ) -> Start:
        """The start of a batch of one task, size and strength.

        Args:
            cells: The images.
            generators: One each.
            schedule: The steps that will be run.
            vae: Reads the pictures.
            sees_mask: The denoiser is an inpainting network.
        """
        device, size_px = next(vae.parameters()).device, (cells[0].width, cells[0].height)
        sources = [cell.source for cell in cells if cell.source is not None]
        nothing = self._nothing(vae, size_px, len(cells)).to(device) if sees_mask else None
        if not sources:
            noise = draw_noise(generators, latent_shape(vae, size_px)).to(device)
            return Start(noise * schedule.first_sigma, beside_BCHW=nothing)
        drawn = [self._draw(vae, *one, size_px, sees_mask=sees_mask) for one in zip(sources, generators, strict=True)]
        noise, clean = (torch.cat(rows).to(device) for rows in zip(*((one.noise, one.clean) for one in drawn), strict=True))
        if sources[0].mask is None:
            return Start(add_noise(clean, noise, schedule), beside_BCHW=nothing)
        clean = clean.contiguous()  # convolutions round by the layout; diffusers' inpainting has this one, its img2img the VAE's
        mask = torch.cat([latent_mask(source, size_px, vae_scale(vae)) for source in sources]).to(device)
        if sources[0].strength == 1.0:
            latents = noise * schedule.first_sigma
        else:
            latents = add_noise(_fill(clean, noise, mask, sources), noise, schedule)
        if sees_mask:
            masked = torch.cat([one.masked for one in drawn if one.masked is not None]).to(device)
            return Start(latents, beside_BCHW=torch.cat([mask, masked], dim=1))
        return Start(latents, Kept(clean, noise, mask))

    def _draw(self, vae: nn.Module, source: Source, generator: torch.Generator, size_px: Size, *, sees_mask: bool) -> _Drawn:
        shape = latent_shape(vae, size_px)
        is_pure_noise = sees_mask and source.mask is not None and source.strength == 1.0
        clean = torch.zeros(1, *shape) if is_pure_noise else self.pictures.source(vae, source, size_px).sample(generator)
        noise = draw_noise([generator], shape)
        if source.mask is None:
            return _Drawn(noise, clean)
        if sees_mask:
            return _Drawn(noise, clean, self.pictures.masked(vae, source, size_px).sample(generator))
        draw_noise([generator], shape)  # diffusers draws this sample for every network; what is drawn later depends on it
        return _Drawn(noise, clean)

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
    is_filled, is_noise = (torch.tensor(flags, device=clean.device).view(-1, 1, 1, 1) for flags in _flags(fills))
    return torch.where(is_filled, clean * (1 - mask) + torch.where(is_noise, noise * mask, 0.0), clean)


def _flags(fills: Sequence[str]) -> tuple[list[bool], list[bool]]:
    return [fill != "original" for fill in fills], [fill == "noise" for fill in fills]
