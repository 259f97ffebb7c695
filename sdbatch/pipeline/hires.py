"""Between the two passes of a hires fix: what the first one made becomes what the second starts from, at its size.

The second pass draws from generators of its own with the same seeds, as in A1111: first what the VAE's answer is sampled
with, where pixels are enlarged, then the noise. It equals diffusers' txt2img, a resize, and diffusers' img2img.

Shapes: B images, C latent channels, H, W latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sdbatch.cell import Cell, Enlarger
from sdbatch.pipeline.decode import decode, latent_shape
from sdbatch.pipeline.encode import Encoded, Size, encode, sample, to_tensor
from sdbatch.pipeline.picture import Pixels, fit, whole_size
from sdbatch.pipeline.start import Pass
from sdbatch.pipeline.upscale import Upscaler


def enlarge_latents(
    latents_BCHW: Tensor, cells: Sequence[Cell], after: Pass, vae: nn.Module, network: Upscaler | None, decoded_at_once: int
) -> Tensor:
    """Clean latents at the size of the pass after. What is too much of one side is cut, as in A1111.

    Args:
        latents_BCHW: As the pass before has made them.
        cells: The images.
        after: The second pass.
        vae: Writes and reads the pictures where pixels are enlarged.
        network: Enlarges them; None: Lanczos does.
        decoded_at_once: How many pictures of the first pass to decode at once.
    """
    hires = cells[0].hires
    assert hires is not None
    if hires.enlarger.interpolation:
        return _interpolate(latents_BCHW, hires.enlarger, latent_shape(vae, after.size_px)[1:])
    pixels, finite = decode(vae, latents_BCHW, decoded_at_once)
    pictures: list[Encoded] = []
    for picture, is_finite, cell in zip(pixels.cpu().numpy(), finite.tolist(), cells, strict=True):
        large, still_finite = network.enlarge(picture, cell.tile_px) if network else (picture, True)
        encoded = _encode(large, after.size_px, vae)
        # What is lost stays lost, so that it is told, or made again in float32.
        lost = replace(encoded, mean_1CHW=torch.full_like(encoded.mean_1CHW, torch.nan))
        pictures.append(encoded if is_finite and still_finite else lost)
    return sample(pictures, after.generators).to(latents_BCHW.device)


def _interpolate(latents_BCHW: Tensor, enlarger: Enlarger, cells: tuple[int, int]) -> Tensor:
    height, width = latents_BCHW.shape[2:]
    columns, rows = whole_size((width, height), (cells[1], cells[0]), covers=True)
    large = functional.interpolate(latents_BCHW, (rows, columns), mode=enlarger.interpolation, antialias=enlarger.antialias)
    top, left = rows // 2 - cells[0] // 2, columns // 2 - cells[1] // 2
    return large[:, :, top : top + cells[0], left : left + cells[1]]


def _encode(pixels: Pixels, size_px: Size, vae: nn.Module) -> Encoded:
    return encode(vae, to_tensor(fit(Image.fromarray(pixels), size_px, "crop")))
