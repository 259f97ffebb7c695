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
from torch.nn.functional import hardshrink

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
"""From the same part of each tensor, float32, to that part of the merge, which may take their place. Called for each part in order."""
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
    """Part by part in float32, each in the place of the one before."""
    count = flat[0].numel()
    buffers = [torch.empty(min(CHUNK, count), device=tensor.device) for tensor in flat]
    for start in range(0, count, CHUNK):
        length = min(CHUNK, count - start)
        yield start, [buffer[:length].copy_(tensor[start : start + length]) for buffer, tensor in zip(buffers, flat, strict=True)]


def weighted_sum(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """a (1 - ratio) + b ratio; exactly a at 0 and exactly b at 1."""
    return lambda parts: parts[0].lerp_(parts[1], knobs.ratio)


def add_difference(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """a + (b - c) ratio."""
    return lambda parts: parts[0].add_(parts[1].sub_(parts[2]), alpha=knobs.ratio)


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
    return lambda parts: parts[0].mul_(share_a).add_(parts[1].mul_(share_b))


def ties(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """c + what a and b changed of it: small changes trimmed, conflicting signs resolved, the rest averaged by ratio."""
    limits = _find_limits(tensors[:2], tensors[2], knobs.density)

    def merge_part(parts: Sequence[Tensor]) -> Tensor:
        c = parts[2]
        a, b = (hardshrink(part.sub_(c), limit) for part, limit in zip(parts[:2], limits, strict=True))
        # The parts' own memory is free again.
        sign = torch.mul(a, 1 - knobs.ratio, out=parts[0]).add_(torch.mul(b, knobs.ratio, out=parts[1])).sign_()
        # What goes with the sum is left as a size, what goes against it as none. One `torch.where` takes longer than all of this.
        for change in (a, b):
            change.mul_(sign).relu_()
        larger, agree = torch.maximum(a, b, out=parts[1]), torch.minimum(a, b).sign_()
        average = a.lerp_(b, knobs.ratio)
        size = larger.addcmul_(average.sub_(larger), agree)
        return c.addcmul_(size, sign)

    return merge_part


SAMPLE = 2**16
"""Changes by which the place of a limit is guessed."""
_GUESS = 384
"""How far off, of the sample, a guess may be: three standard deviations at the worst density. A rare miss costs another look at all."""


def _find_limits(changed: Sequence[Tensor], base: Tensor, density: float) -> list[float]:
    """For each, a number that the changes to be kept, the largest share of them, are beyond; 0 where all are kept."""
    kept = round(base.numel() * density)
    if kept >= base.numel():
        return [0.0] * len(changed)
    if kept == 0:
        return [math.inf] * len(changed)
    rank = base.numel() - kept
    found = _find_ranks(rank, changed, base, [_guess(rank, tensor, base) for tensor in changed])
    for place, tensor in enumerate(changed):
        if found[place] is None:
            [found[place]] = _find_ranks(rank, [tensor], base, [(0.0, math.inf)])
    return [0.0 if size is None else float(np.nextafter(np.float32(size), np.float32(0))) for size in found]


def _guess(rank: int, tensor: Tensor, base: Tensor) -> tuple[float, float]:
    """Bounds between which the change of that rank lies, most likely."""
    if tensor.numel() <= 8 * SAMPLE:
        return 0.0, math.inf
    step = tensor.numel() // SAMPLE | 1  # odd, so as not to walk down one column
    sample = np.sort((tensor[::step].float() - base[::step].float()).abs().cpu().numpy())
    place = rank * len(sample) // tensor.numel()
    return float(sample[max(place - _GUESS, 0)]), float(sample[min(place + _GUESS, len(sample) - 1)])


def _find_ranks(rank: int, changed: Sequence[Tensor], base: Tensor, bounds: Sequence[tuple[float, float]]) -> list[float | None]:
    """For each, the change of that rank by size, the smallest being 0; None when it does not lie between its bounds."""
    below = [0] * len(changed)
    between: list[list[np.ndarray]] = [[] for _ in changed]
    for _, (*parts, base_part) in _iter_parts([*changed, base]):
        for place, (part, (low, high)) in enumerate(zip(parts, bounds, strict=True)):
            sizes = part.sub_(base_part).abs_().cpu().numpy()
            is_below = sizes < low
            below[place] += int(np.count_nonzero(is_below))
            between[place].append(sizes.compress(is_below ^ (sizes <= high)))
    return [_at(rank - count, np.concatenate(sizes)) for count, sizes in zip(below, between, strict=True)]


def _at(rank: int, sizes: np.ndarray) -> float | None:
    if not 0 <= rank < sizes.size:
        return None
    sizes.partition(rank)
    return float(sizes[rank])


def dare(tensors: Sequence[Tensor], knobs: Knobs) -> MergePart:
    """c + what a and b changed of it, of which a random share is kept and made larger by as much as was dropped."""
    random = np.random.SFC64(knobs.seed)
    limit = max(round(knobs.density * 2**16), 1)

    def drop(change: Tensor) -> Tensor:
        # Sixteen random bits for each number: four from each draw.
        bits = random.random_raw(-(-change.numel() // 4)).view(np.uint16)[: change.numel()]
        kept = torch.from_numpy((bits < limit).view(np.uint8)).to(change.device)
        return change.mul_(kept.float()).mul_(2**16 / limit)

    def merge_part(parts: Sequence[Tensor]) -> Tensor:
        a, b, c = parts
        drop(a.sub_(c))
        drop(b.sub_(c))
        return c.add_(a.lerp_(b, knobs.ratio))

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
