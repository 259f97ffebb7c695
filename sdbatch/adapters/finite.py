"""Weights that are not numbers are refused when a file is read: one of them turns every image black."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdbatch.errors import WeightFileError

_NOT_FINITE_BITS = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""Of float8, which torch cannot compare: the bits that are all set in what is no finite number."""


def refuse_not_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Look at every floating-point tensor once, at the speed of memory.

    Raises:
        WeightFileError: one holds NaN or infinity; the message names it and counts the others.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise WeightFileError(
            f"{what}: tensor {bad[0]}{others} of {len(tensors)} holds values that are no numbers (NaN or infinity), which would turn "
            "images black. The file is damaged or its training failed: choose another."
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's values are finite numbers."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    if (bits := _NOT_FINITE_BITS.get(tensor.dtype)) is not None:
        return not bool(((tensor.view(torch.uint8) & bits) == bits).any())
    if tensor.element_size() < 2:
        return True
    # One bad value makes the sum bad, at the speed of memory. Good ones may add up to more than the dtype holds: then the extremes
    # tell, where NaN wins every comparison; on half precision they are found forty times faster than by isfinite.
    return bool(torch.isfinite(tensor.sum())) or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))
