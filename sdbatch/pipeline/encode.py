"""From pixels to latents: what a VAE makes of pictures, each distinct one read once and alone.

Shapes: B images, C latent channels, H, W latent cells, h, w pixels.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdbatch.cell import Source
from sdbatch.pipeline.denoise import draw_noise
from sdbatch.pipeline.picture import Pixels, read_mask, read_source
from sdbatch.plan.picture import MASKED

_CACHE_BYTES = 256 * 2**20

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a VAE makes of one picture: a distribution, of which each image takes a sample of its own. On the CPU, float32."""

    mean_1CHW: Tensor
    std_1CHW: Tensor
    shift: float
    scale: float
    """What brings a sample to the range that denoisers know."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Latents [1, C, H, W] drawn by a CPU generator."""
        _, channels, height, width = self.mean_1CHW.shape
        return self._to_latents(self.mean_1CHW + self.std_1CHW * draw_noise([generator], (channels, height, width)))

    def most_likely(self) -> Tensor:
        """The latents [1, C, H, W] in the middle of the distribution."""
        return self._to_latents(self.mean_1CHW)

    def _to_latents(self, sample: Tensor) -> Tensor:
        return (sample - self.shift if self.shift else sample) * self.scale


def encode(vae: nn.Module, pixels_1Chw: Tensor) -> Encoded:
    """What a VAE makes of one picture, -1 to 1."""
    module: Any = vae
    parameter = next(vae.parameters())
    found = module.encode(pixels_1Chw.to(parameter.device, parameter.dtype)).latent_dist
    shift = getattr(module.config, "shift_factor", None) or 0.0
    return Encoded(found.mean.float().cpu(), found.std.float().cpu(), shift, module.config.scaling_factor)


def sample(pictures: Sequence[Encoded], generators: Sequence[torch.Generator]) -> Tensor:
    """Latents [B, C, H, W] of each picture, drawn by its image's own generator."""
    return torch.cat([picture.sample(generator) for picture, generator in zip(pictures, generators, strict=True)])


class PictureEncoder:
    """Encodes the pictures of cells; what was encoded before by the same VAE is not again."""

    def __init__(self) -> None:
        self._cache: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._bytes = 0
        self._known: tuple[weakref.ref[nn.Module], torch.dtype] | None = None

    def source(self, vae: nn.Module, source: Source, size_px: Size) -> Encoded:
        """The source picture."""
        key = (source.image_sha256, source.resize, size_px)
        return self._encode(vae, key, lambda: to_tensor(read_source(source, size_px)))

    def masked(self, vae: nn.Module, source: Source, size_px: Size) -> Encoded:
        """The source picture, grey where it will be made anew."""
        assert source.mask is not None
        key = (source.image_sha256, source.resize, size_px, source.mask.image_sha256, source.mask.blur_px)
        return self._encode(vae, key, lambda: to_tensor(read_source(source, size_px)) * ~binary_mask(source, size_px))

    def nothing(self, vae: nn.Module, size_px: Size) -> Encoded:
        """A picture that is masked everywhere, as inpainting pipelines make it: a grey one."""
        return self._encode(vae, size_px, lambda: torch.zeros(1, 3, size_px[1], size_px[0]))

    def _encode(self, vae: nn.Module, key: Hashable, pixels: Callable[[], Tensor]) -> Encoded:
        dtype = next(vae.parameters()).dtype
        if self._known is None or self._known[0]() is not vae or self._known[1] is not dtype:
            self._cache.clear()
            self._bytes, self._known = 0, (weakref.ref(vae), dtype)
        if key not in self._cache:
            self._cache[key] = encoded = encode(vae, pixels())
            self._bytes += 2 * encoded.mean_1CHW.nbytes
            while self._bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._bytes -= 2 * self._cache.popitem(last=False)[1].mean_1CHW.nbytes
        self._cache.move_to_end(key)
        return self._cache[key]


def to_tensor(pixels: Pixels) -> Tensor:
    """[1, 3, h, w], -1 to 1, in memory channels last as diffusers' are: convolutions round by it."""
    return 2.0 * torch.from_numpy(np.stack([pixels.astype(np.float32) / 255.0])).permute(0, 3, 1, 2) - 1.0


def binary_mask(source: Source, size_px: Size) -> Tensor:
    """[1, 1, h, w]: whether a pixel is made anew."""
    return torch.from_numpy(read_mask(source, size_px) >= MASKED)[None, None]
