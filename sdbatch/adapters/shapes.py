"""What of a component an adapter can change, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

Shapes = Mapping[str, Sequence[int]]
"""Module -> the shape of its weight, for each module of a component that has one."""


def shapes_of(component: nn.Module) -> dict[str, torch.Size]:
    """The modules of a component that an adapter can change: linear and convolutional layers, and norms."""
    found: dict[str, torch.Size] = {}
    for name, module in component.named_modules():
        weight = module._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]  # its own, not a child's
        if weight is not None and (isinstance(module, nn.Linear | nn.Conv2d) or weight.dim() == 1):
            found[name] = weight.shape
    return found
