"""Small random networks that enlarge pictures, of the real classes, and the files that hold them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbatch.cell import WeightFile
from sdbatch.pipeline.upscale import import_spandrel
from sdbatch.weights.upscaler import missing_library
from tests.pipeline.models import save, shake

needs_spandrel = pytest.mark.skipif(missing_library() is not None, reason=str(missing_library()))

_SWIN: dict[str, Any] = {"img_size": 16, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8}

NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "esrgan_x4": ("ESRGAN", "ESRGAN", {"num_filters": 8, "num_blocks": 2, "scale": 4}),
    "esrgan_x2": ("ESRGAN", "ESRGAN", {"in_nc": 12, "out_nc": 3, "num_filters": 8, "num_blocks": 2, "scale": 4, "shuffle_factor": 2}),
    "compact_x4": ("Compact", "Compact", {"num_feat": 8, "num_conv": 2, "upscale": 4}),
    "compact_x2": ("Compact", "Compact", {"num_feat": 8, "num_conv": 2, "upscale": 2}),
    "swinir_x4": ("SwinIR", "SwinIR", {**_SWIN, "upscale": 4, "upsampler": "nearest+conv"}),
    "swinir_x2": ("SwinIR", "SwinIR", {**_SWIN, "upscale": 2, "upsampler": "pixelshuffle"}),
    "swinir_x3": ("SwinIR", "SwinIR", {**_SWIN, "upscale": 3, "upsampler": "pixelshuffledirect"}),
    "span_x4": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 4}),
    "omnisr_x4": ("OmniSR", "OmniSR", {"num_feat": 8, "res_num": 1, "block_num": 1, "up_scale": 4, "bias": True, "window_size": 8}),
    "plksr_x4": ("PLKSR", "PLKSR", {"dim": 8, "n_blocks": 2, "upscaling_factor": 4, "kernel_size": 7}),
}
"""Name -> (package of spandrel, class, options)."""


def build(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights that leave a picture in the range of pixels."""
    package, cls, options = NETWORKS[name]
    import_spandrel()
    network: nn.Module = getattr(importlib.import_module(f"spandrel.architectures.{package}"), cls)(**options).eval()
    if package in ("ESRGAN", "Compact"):
        shake(network, seed)
    return network


def write(name: str, folder: Path, seed: int = 0) -> WeightFile:
    """The network as a safetensors file."""
    return save(build(name, seed).state_dict(), folder / f"{name}.safetensors")


def write_pickle(tensors: dict[str, Tensor], path: Path, inner: str | None = None) -> WeightFile:
    """A file as training programs leave it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({inner: tensors} if inner else tensors, path)
    return WeightFile(path.stem, str(path), path.stem)
