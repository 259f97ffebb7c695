"""The ways to merge tensors, one table. Each takes float32 tensors of one name and gives their merge in float32.

Sources: TIES, arXiv 2306.01708; DARE, arXiv 2311.03099; slerp, Shoemake 1985. `a`, `b`, `c` are A1111's models A, B and C.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbatch.cell import Merge

SAME_DIRECTION = 0.9995
"""Cosine of two tensors beyond which the arc between them is a straight line."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The numbers of one tensor's merge."""

    ratio: float
    density: float
    seed: int
    """Of this tensor's own random choices."""


Function = Callable[[Sequence[Tensor], Knobs], Tensor]


def weighted_sum(tensors: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """a (1 - ratio) + b ratio; exactly a at 0 and exactly b at 1."""
    a, b = tensors
    return torch.lerp(a, b, knobs.ratio)


def add_difference(tensors: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """a + (b - c) ratio."""
    a, b, c = tensors
    return torch.add(a, b - c, alpha=knobs.ratio)


def slerp(tensors: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """From a to b along the arc between their directions, the length in step; exactly a at 0 and exactly b at 1."""
    a, b = tensors
    length_a, length_b = float(a.double().norm()), float(b.double().norm())
    cosine = float((a.double() * b).sum()) / (length_a * length_b) if length_a * length_b > 0 else 1.0
    if abs(cosine) > SAME_DIRECTION:
        return torch.lerp(a, b, knobs.ratio)
    angle = math.acos(cosine)
    length = length_a * (1 - knobs.ratio) + length_b * knobs.ratio
    share_a = math.sin((1 - knobs.ratio) * angle) / math.sin(angle) * (length / length_a)
    share_b = math.sin(knobs.ratio * angle) / math.sin(angle) * (length / length_b)
    return a * share_a + b * share_b


def ties(tensors: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """c + what a and b changed of it: small changes trimmed, conflicting signs resolved, the rest averaged by ratio."""
    a, b, c = tensors
    changes = torch.stack([_trim(a - c, knobs.density), _trim(b - c, knobs.density)])
    shares = torch.tensor([1 - knobs.ratio, knobs.ratio]).reshape(2, *(1,) * c.dim())
    weighted = changes * shares
    elected = torch.sign(weighted.sum(0))
    agrees = (torch.sign(changes) == elected) & (changes != 0)
    total = (shares * agrees).sum(0)
    return c + torch.where(total > 0, (weighted * agrees).sum(0) / total.clamp(min=1e-12), 0.0)


def _trim(change: Tensor, density: float) -> Tensor:
    """The largest share of a change, the rest set to 0."""
    kept = round(change.numel() * density)
    if kept >= change.numel():
        return change
    if kept == 0:
        return torch.zeros_like(change)
    chosen = change.abs().flatten().topk(kept, sorted=False).indices
    mask = torch.zeros(change.numel(), dtype=torch.bool)
    mask[chosen] = True
    return change * mask.reshape(change.shape)


def dare(tensors: Sequence[Tensor], knobs: Knobs) -> Tensor:
    """c + what a and b changed of it, of which a random share is kept and made larger by as much as was dropped."""
    a, b, c = tensors
    random = torch.Generator().manual_seed(knobs.seed)
    kept_a, kept_b = (_drop(change, knobs.density, random) for change in (a - c, b - c))
    return c + torch.lerp(kept_a, kept_b, knobs.ratio)


def _drop(change: Tensor, density: float, random: torch.Generator) -> Tensor:
    kept = torch.rand(change.shape, generator=random) < density
    return change * kept / density


@dataclass(frozen=True, slots=True)
class Method:
    """A way to merge."""

    merge: Function
    elementwise: bool
    """Each number depends on its own place alone, so that a tensor may be merged in parts."""


FUNCTIONS: dict[str, Method] = {
    "weighted_sum": Method(weighted_sum, elementwise=True),
    "add_difference": Method(add_difference, elementwise=True),
    "slerp": Method(slerp, elementwise=False),
    "ties": Method(ties, elementwise=False),
    "dare": Method(dare, elementwise=False),
}
"""By the names of `sdbatch.merge.table.METHODS`."""


def seed_of(merge: Merge, name: str) -> int:
    """The seed of one tensor: the same whatever the order in which tensors are merged."""
    return int.from_bytes(hashlib.blake2b(f"{merge.seed} {name}".encode(), digest_size=7).digest())
