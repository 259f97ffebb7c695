"""From latents to pixels, and whether the pixels are a picture.

Shapes: B images, C latent channels, H, W (latent cells, then pixels).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_FLAT_STD = 1.0
"""A picture whose every channel varies less than this, of 255, is of one colour."""


def decode(vae: nn.Module, latents_BCHW: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """The pixels [B, H, W, 3] as uint8, and [B] whether each picture is finite; both on the latents' device.

    Args:
        vae: Decodes.
        latents_BCHW: As denoised.
        at_once: How many pictures to decode at once.
    """
    config: Any = vae.config
    dtype = next(vae.parameters()).dtype
    scaled = (latents_BCHW / config.scaling_factor).to(dtype)
    if getattr(config, "shift_factor", None):
        scaled = scaled + config.shift_factor
    parts = [_decode_part(vae, part) for part in scaled.split(at_once)]
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([finite for _, finite in parts])


def _decode_part(vae: Any, scaled_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    images: Tensor = vae.decode(scaled_BCHW, return_dict=False)[0].float()
    finite = images.isfinite().flatten(1).all(dim=1)
    pixels = (images * 0.5 + 0.5).clamp(0, 1).nan_to_num(0.0).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous(), finite


def vae_scale(vae: nn.Module) -> int:
    """Pixels per latent cell."""
    config: Any = vae.config
    return 2 ** (len(config.block_out_channels) - 1)


def latent_shape(vae: nn.Module, size_px: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of the latents of a picture of (width, height) pixels."""
    config: Any = vae.config
    scale = vae_scale(vae)
    return config.latent_channels, size_px[1] // scale, size_px[0] // scale


def find_fault(pixels_HWC: npt.NDArray[np.uint8], finite: bool) -> str | None:
    """`nan`, `flat`, or None for a picture."""
    if not finite:
        return "nan"
    return "flat" if float(pixels_HWC.std(axis=(0, 1), dtype=np.float32).max()) < _FLAT_STD else None
