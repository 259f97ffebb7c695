"""What is known of an upscaler before its network is built: its factor, and whether the library that runs it is there."""

from __future__ import annotations

import importlib.util
import math
import re

from sdbatch.weights.header import Header

USUAL_SCALE = 4
"""Of networks whose header does not tell."""

_DOUBLING = re.compile(r"(?:^|\.)(?:upconv|conv_up)\d+\.weight$")
"""A convolution after each doubling: ESRGAN's newer names, SwinIR's and DAT's `nearest+conv`."""
_NUMBERED = re.compile(r"(?:^|\.)model\.(\d+)\.weight$")
"""ESRGAN's older names: 0 begins, 1 is the trunk, then 3 for each doubling, the last two end it."""
_SHUFFLE = re.compile(r"(?:^|\.)(?:upsample|upsampler|up|body|feats)\.(\d+)\.weight$")
"""Convolutions before a pixel shuffle."""


def missing_library() -> str | None:
    """What to install before an upscaler can run; None when it is there."""
    if all(importlib.util.find_spec(name) is not None for name in ("spandrel", "einops")):
        return None
    return (
        "a network that enlarges pictures needs the library spandrel. Install it: pip install --no-deps spandrel einops "
        "(without the torchvision it asks for, which it does not need here)."
    )


def find_scale(header: Header) -> int | None:
    """By how much a network enlarges, from the shapes of its tensors; None when they do not tell."""
    shapes = {name: info.shape for name, info in header.tensors.items() if len(info.shape) == 4}
    if doublings := sum(1 for name in shapes if _DOUBLING.search(name)):
        return _shuffled_down(2**doublings, shapes)
    if numbers := [int(found[1]) for name in shapes if (found := _NUMBERED.search(name))]:
        return _shuffled_down(2 ** ((max(numbers) - 4) // 3), shapes)
    convolutions = sorted((int(found[1]), shape) for name, shape in shapes.items() if (found := _SHUFFLE.search(name)))
    if not convolutions:
        return None
    if (scale := math.isqrt(convolutions[-1][1][0] // 3)) ** 2 * 3 == convolutions[-1][1][0]:
        return scale  # straight to the pixels
    steps = [math.isqrt(out // inputs) for _, (out, inputs, *_) in convolutions]
    return math.prod(steps) if min(steps) > 1 else None


def _shuffled_down(scale: int, shapes: dict[str, tuple[int, ...]]) -> int:
    """Real-ESRGAN's smaller factors look at a picture that was folded to a half or a quarter of its sides."""
    channels = next((shape[1] for name, shape in shapes.items() if name.endswith(("conv_first.weight", "model.0.weight"))), 3)
    return max(1, scale // math.isqrt(max(1, channels // 3)))
