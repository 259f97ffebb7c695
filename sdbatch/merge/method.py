"""The ways to merge tensors, one table. Each looks at whole tensors once, then merges them part by part in float32.

Sources: TIES, arXiv 2306.01708; DARE, arXiv 2311.03099; slerp, Shoemake 1985. `a`, `b`, `c` are A1111's models A, B and C.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdbatch.cell import Merge

CHUNK = 2**18
"""Numbers merged at once: what fits the processor's cache."""

SAME_DIRECTION = 0.9995
"""Cosine of two tensors beyond which the arc between them is a straight line."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The numbers of one tensor's merge."""

    ratio: float
    density: float
    seed: int
    """Of this tensor's own random choices."""


MergePart = Callable[[Sequence[Tensor]], Tensor]
"""From the same part of each tensor, float32, to that part of the merge. Called for each part in its order."""
Method = Callable[[Sequence[Tensor], Knobs], MergePart]
"""From whole flat tensors, in any dtype, to what merges their parts."""


def merge_tensors(method: Method, tensors: Sequence[Tensor], knobs: Knobs, out: Tensor) -> None:
    """Merge tensors of one shape into a contiguous one."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    merge_part = method(flat, knobs)
    target = out.view(-1)
    for start, parts in _iter_parts(flat):
        target[start : start + CHUNK] = merge_part(parts)


def _iter_parts(flat: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    for start in range(0, flat[0].numel(), CHUNK):
        yield start, [tensor[start : start + CHUNK].float() for tensor in flat]


def weighted_sum(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """a (1 - ratio) + b ratio; exactly a at 0 and exactly b at 1."""
    return lambda parts: torch.lerp(parts[0], parts[1], knobs.ratio)


def add_difference(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """a + (b - c) ratio."""
    return lambda parts: torch.add(parts[0], parts[1] - parts[2], alpha=knobs.ratio)


def slerp(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """From a to b along the arc between their directions, the length in step; exactly a at 0 and exactly b at 1."""
    products = np.zeros(3)
    for _, (a, b) in _iter_parts(tensors):
        products += [float(a @ a), float(b @ b), float(a @ b)]
    length_a, length_b = math.sqrt(products[0]), math.sqrt(products[1])
    cosine = float(products[2]) / (length_a * length_b) if length_a * length_b > 0 else 1.0
    if abs(cosine) > SAME_DIRECTION:
        return weighted_sum(tensors, knobs)
    angle = math.acos(cosine)
    length = length_a * (1 - knobs.ratio) + length_b * knobs.ratio
    share_a = math.sin((1 - knobs.ratio) * angle) / math.sin(angle) * (length / length_a)
    share_b = math.sin(knobs.ratio * angle) / math.sin(angle) * (length / length_b)
    return lambda parts: parts[0] * share_a + parts[1] * share_b


def ties(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """c + what a and b changed of it: small changes trimmed, conflicting signs resolved, the rest averaged by ratio."""
    limits = torch.tensor([[_limit(tensor, tensors[2], knobs.density)] for tensor in tensors[:2]])
    shares = torch.tensor([[1 - knobs.ratio], [knobs.ratio]])

    def merge_part(parts: Sequence[Tensor]) -> Tensor:
        a, b, c = parts
        changes = torch.stack([a - c, b - c])
        changes *= changes.abs() >= limits
        weighted = changes * shares
        agrees = (torch.sign(changes) == torch.sign(weighted.sum(0))) & (changes != 0)
        total = (shares * agrees).sum(0)
        return c + torch.where(total > 0, (weighted * agrees).sum(0) / total.clamp(min=1e-12), 0.0)

    return merge_part


def _limit(tensor: Tensor, base: Tensor, density: float) -> float:
    """The size of the smallest change that is kept: the largest share of them is."""
    kept = round(tensor.numel() * density)
    if kept >= tensor.numel():
        return 0.0
    if kept == 0:
        return math.inf
    sizes = torch.empty(tensor.numel())
    for start, (part, base_part) in _iter_parts([tensor, base]):
        torch.sub(part, base_part, out=sizes[start : start + CHUNK])
    found = sizes.abs_().numpy()
    found.partition(tensor.numel() - kept)
    return float(found[tensor.numel() - kept])


def dare(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """c + what a and b changed of it, of which a random share is kept and made larger by as much as was dropped."""
    random = torch.Generator().manual_seed(knobs.seed)

    def drop(change: Tensor) -> Tensor:
        return change * (torch.rand(change.shape, generator=random) < knobs.density) / knobs.density

    def merge_part(parts: Sequence[Tensor]) -> Tensor:
        a, b, c = parts
        kept_a, kept_b = drop(a - c), drop(b - c)
        return c + torch.lerp(kept_a, kept_b, knobs.ratio)

    return merge_part


FUNCTIONS: dict[str, Method] = {
    "weighted_sum": weighted_sum,
    "add_difference": add_difference,
    "slerp": slerp,
    "ties": ties,
    "dare": dare,
}
"""By the names of `sdbatch.merge.table.METHODS`."""


def seed_of(merge: Merge, name: str) -> int:
    """The seed of one tensor: the same whatever the order in which tensors are merged."""
    return int.from_bytes(hashlib.blake2b(f"{merge.seed} {name}".encode(), digest_size=7).digest())
