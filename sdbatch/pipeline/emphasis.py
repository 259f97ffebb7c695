"""What the weights of a prompt, `(word:1.2)`, do to its embedding."""

from __future__ import annotations

import torch
from torch import Tensor

_MEAN_FLOOR = 0.01
"""Below this share of the standard deviation a mean is noise, and to restore it would blow the embedding up."""


def emphasise(hidden_NTC: Tensor, weights_NT: Tensor) -> Tensor:
    """Multiply each token's embedding by its weight, then restore the mean of each chunk that has a mean to restore.

    Source: A1111's emphasis "original". Chunks whose weights are all 1 come back unchanged, bit for bit.
    """
    weighted = hidden_NTC * weights_NT[..., None]
    before, after = hidden_NTC.mean(dim=(1, 2)), weighted.mean(dim=(1, 2))
    floor = _MEAN_FLOOR * hidden_NTC.std(dim=(1, 2))
    restore = (weights_NT != 1).any(dim=1) & (before.abs() > floor) & (after.abs() > floor) & (before * after > 0)
    ratio = torch.where(restore, before / torch.where(restore, after, torch.ones_like(after)), torch.ones_like(before))
    return weighted * ratio[:, None, None]
