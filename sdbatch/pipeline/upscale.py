"""Enlarges finished pictures: by a network that spandrel builds, tile by tile, and by Lanczos to any other size.

Shapes: H, W pixels of the picture, C = 3 channels (RGB), s the network's own factor.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sdbatch.adapters.read import Tensors, read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import CellError, WeightFileError
from sdbatch.pipeline.picture import Pixels, fit
from sdbatch.weights.upscaler import missing_library

OVERLAP_PX = 32
"""Pixels of the picture that two tiles share at least, over which one fades into the other; a quarter of a small tile."""
MOST_PIXELS = 89_478_485
"""Of one picture: beyond this Pillow, and so most readers, takes it for an attack."""

_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
_BORROWED = ("InterpolationMode", "rotate", "normalize")
"""What spandrel's registry imports of torchvision, for two networks that sdbatch never runs (inpainting, faces)."""
_INNER = ("params_ema.", "params.", "model_state_dict.")
"""Where training programs keep the network in a file, averaged weights first."""


class Upscaler:
    """A network that enlarges pictures by its own factor, in eval mode on its device."""

    def __init__(self, file: WeightFile, network: Any) -> None:
        self.name = file.name
        self.module: nn.Module = network.model
        self.scale = int(network.scale)
        self._network = network

    def enlarge(self, pixels: Pixels, tile_px: int) -> tuple[Pixels, bool]:
        """The picture in `scale` times its size, and whether all of its values are finite.

        Args:
            pixels: The picture.
            tile_px: Side of the squares that are enlarged one at a time; 0: the picture as a whole.
        """
        weight = next(self.module.parameters())
        picture = (torch.tensor(pixels).to(weight.device).permute(2, 0, 1)[None].float() / 255).to(weight.dtype)
        with torch.inference_mode():
            large = enlarge_tiled(self._network, picture, self.scale, tile_px)
            finite = bool(large.isfinite().all())
            rounded = large.float().nan_to_num(0.0).mul(255).round().clamp(0, 255).to(torch.uint8)
        return rounded[0].permute(1, 2, 0).contiguous().cpu().numpy(), finite


def upscale(pixels: Pixels, upscaler: Upscaler | None, scale: float | None, tile_px: int) -> tuple[Pixels, bool]:
    """The picture at its final size, and whether it is finite.

    Args:
        pixels: As it was decoded.
        upscaler: None: by Lanczos alone.
        scale: Final size over the picture's; None: the upscaler's own factor.
        tile_px: See `Upscaler.enlarge`.

    Raises:
        CellError: the result would be too large to be read back.
    """
    height, width, _ = pixels.shape
    factor = scale if scale is not None else float(upscaler.scale) if upscaler else 1.0
    size_px = (max(1, round(width * factor)), max(1, round(height * factor)))
    if math.prod(size_px) > MOST_PIXELS:
        raise CellError(
            f"upscaler: {size_px[0]} x {size_px[1]} px is more than image files may have ({MOST_PIXELS}). Lower upscaler.scale."
        )
    large, finite = upscaler.enlarge(pixels, tile_px) if upscaler else (pixels, True)
    return fit(Image.fromarray(large), size_px, "stretch"), finite


def load_upscaler(file: WeightFile, dtype: torch.dtype, device: torch.device) -> Upscaler:
    """The network of a file, in half precision where the model is and the architecture bears it.

    Raises:
        WeightFileError: spandrel is missing, or the file is damaged or no network from RGB to RGB.
    """
    spandrel = import_spandrel()
    state = spandrel.canonicalize_state_dict(_unwrap(read_tensors(file).tensors))
    try:
        network = spandrel.MAIN_REGISTRY.load(state)
    except Exception as error:  # whatever its 40 architectures raise over tensors that are not theirs
        reason = " ".join(str(error).split()[:20]) or type(error).__name__
        raise WeightFileError(f"upscaler.{file.name}: spandrel cannot build its network ({reason}). Choose another file.") from error
    if network.purpose not in ("SR", "Restoration") or (network.input_channels, network.output_channels) != (3, 3):
        kind = f"{network.architecture.name}, {network.purpose}, {network.input_channels} to {network.output_channels} channels"
        raise WeightFileError(
            f"upscaler.{file.name}: it does not make a larger RGB picture of an RGB picture ({kind}). Choose another file."
        )
    network.model.to(device=device, dtype=network_dtype(dtype, network.supports_half, device)).eval().requires_grad_(False)
    return Upscaler(file, network)


def network_dtype(dtype: torch.dtype, supports_half: bool, device: torch.device) -> torch.dtype:
    """Half precision on a GPU beside a model in half precision; never bfloat16, whose steps are coarser than a pixel's."""
    is_half = dtype in (torch.float16, torch.bfloat16) and device.type != "cpu"
    return torch.float16 if is_half and supports_half else torch.float32


def _unwrap(tensors: Tensors) -> Tensors:
    """The network's own tensors, without what training programs put around them."""
    for prefix in _INNER:
        if inner := {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}:
            return inner
    return tensors


def enlarge_tiled(network: Callable[[Tensor], Tensor], picture_1CHW: Tensor, scale: int, tile_px: int) -> Tensor:
    """What the network makes of a picture, tile by tile, tiles faded into each other: [1, C, s H, s W].

    Memory grows with the tile, not with the picture. Where a network looks no further than a tile's border, it is what the
    network makes of the whole.
    """
    height, width = picture_1CHW.shape[2:]
    if tile_px == 0 or max(height, width) <= tile_px:
        return network(picture_1CHW)
    overlap = min(OVERLAP_PX, tile_px // 4)
    total = torch.zeros(1, picture_1CHW.shape[1], height * scale, width * scale, device=picture_1CHW.device)
    weights = torch.zeros(1, 1, height * scale, width * scale, device=picture_1CHW.device)
    for top, bottom in tile_spans(height, tile_px, overlap):
        fade_y = _fade(top, bottom, height, overlap, scale).to(total.device)
        for left, right in tile_spans(width, tile_px, overlap):
            weight = fade_y[:, None] * _fade(left, right, width, overlap, scale).to(total.device)
            window = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
            total[window] += network(picture_1CHW[..., top:bottom, left:right]).float() * weight
            weights[window] += weight
    return total / weights


def tile_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles of one size begin and end so that they cover a side evenly and share the overlap at least."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _fade(begin: int, end: int, length: int, overlap: int, scale: int) -> Tensor:
    """The weight of a tile's rows or columns: 1, and falling off towards neighbours."""
    weight = torch.ones((end - begin) * scale)
    slope = (torch.arange(overlap * scale) + 0.5) / (overlap * scale)
    if begin > 0:
        weight[: len(slope)] = slope
    if end < length:
        weight[-len(slope) :] = slope.flip(0)
    return weight


def import_spandrel() -> Any:
    """The library that knows the networks.

    Raises:
        WeightFileError: it is not installed.
    """
    try:
        with _torchvision_or_stand_in():
            return importlib.import_module("spandrel")
    except ImportError as error:
        told = missing_library() or "spandrel cannot be imported; install the version that sdbatch asks for."
        raise WeightFileError(f"upscaler: {told} ({error})") from error


@contextmanager
def _torchvision_or_stand_in() -> Generator[None]:
    """Torchvision where it works, else three names in its place while spandrel is imported.

    The registry's build of torchvision does not fit a CPU build of torch, and even its presence breaks diffusers; spandrel
    imports it for networks that are refused here. The stand-in is gone again before anybody else looks for torchvision.
    """
    if "spandrel" in sys.modules or _has_torchvision():
        yield
        return
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    try:
        for name in before:
            del sys.modules[name]
        for name in _TORCHVISION:
            sys.modules[name] = ModuleType(name)
        for name in _BORROWED:
            setattr(sys.modules[_TORCHVISION[-1]], name, None)
        yield
    finally:
        for name in _TORCHVISION:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _has_torchvision() -> bool:
    try:
        importlib.import_module(_TORCHVISION[-1])
    except Exception:  # a build for another torch raises RuntimeError
        return False
    return True
