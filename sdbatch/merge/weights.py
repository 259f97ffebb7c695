"""Weights that are made when they are asked for, one tensor at a time: the steps of a merge or conversion, each around the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbatch.adapters.delta import Delta
from sdbatch.adapters.finite import is_finite
from sdbatch.cell import Merge
from sdbatch.errors import WeightFileError
from sdbatch.merge.blocks import Blocks
from sdbatch.merge.method import FUNCTIONS, Knobs, Method, merge_tensors, seed_of
from sdbatch.merge.source import Source


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a model under common names."""

    likes: Mapping[str, Tensor]
    """Shape and dtype of every tensor, as tensors without data."""
    make: Callable[[str], Tensor]
    """Reads or computes one tensor."""
    release: Callable[[str], None]
    """Gives back what making it took in memory."""


def plain(source: Source) -> Weights:
    """The tensors of a file as they are."""
    likes = {name: torch.empty_like(tensor, device="meta") for name, tensor in source.tensors.items()}
    owners = {name: own for own, piece in source.pieces.items() for name in piece.names}
    return Weights(likes, source.tensors.__getitem__, lambda name: source.release(owners[name]) if name in owners else None)


def merged(parts: Sequence[Weights], merge: Merge) -> Weights:
    """The first weights merged with the others; a component that one of the others lacks stays as it is."""
    first, *others = parts
    shared = _shared_components(parts)
    method = FUNCTIONS[merge.method]
    blocks = Blocks(merge.blocks, merge.ratio, first.likes) if merge.blocks else None

    def make(name: str) -> Tensor:
        tensor = first.make(name)
        if name.partition(".")[0] not in shared or not tensor.is_floating_point():
            return tensor
        ratio = blocks.ratio(name) if blocks else merge.ratio
        knobs = Knobs(ratio, merge.density, seed_of(merge, name))
        out = _merge([tensor, *(other.make(name) for other in others)], method, knobs)
        if not is_finite(out):
            raise WeightFileError(
                f"{name} is not finite once merged: a checkpoint is damaged, or the numbers are too large for {tensor.dtype}. "
                "Choose another checkpoint or a smaller ratio."
            )
        return out

    def release(name: str) -> None:
        first.release(name)
        for other in others:
            if name in other.likes:
                other.release(name)

    return Weights(first.likes, make, release)


def _merge(tensors: list[Tensor], method: Method, knobs: Knobs) -> Tensor:
    first = tensors[0]
    out = torch.empty_like(first, memory_format=torch.contiguous_format)
    if narrowed := _extra_inputs(tensors):
        # An inpainting model looks at more channels than the others: those are its own.
        out.copy_(first)
        out[:, :narrowed] = _merge([first[:, :narrowed], *tensors[1:]], method, knobs)
        return out
    merge_tensors(method, tensors, knobs, out)
    return out


def _extra_inputs(tensors: Sequence[Tensor]) -> int:
    """The input channels that all have, where the first has more; 0 where all are alike."""
    first, *others = tensors
    narrow = {tensor.shape for tensor in others} - {first.shape}
    return next(iter(narrow))[1] if narrow else 0


def _shared_components(parts: Sequence[Weights]) -> frozenset[str]:
    found = [frozenset(name.partition(".")[0] for name in part.likes) for part in parts]
    return frozenset.intersection(*found)


def find_misfits(first: Weights, other: Weights) -> Iterator[str]:
    """What keeps two models from being merged, as ends of a sentence; components that the other lacks do not."""
    shared = _shared_components([first, other])
    for name, like in first.likes.items():
        if name.partition(".")[0] not in shared:
            continue
        if (found := other.likes.get(name)) is None:
            yield f"{name} is only in the first"
        elif found.shape != like.shape and not _is_inpainting(name, like, found):
            yield f"{name} is {list(like.shape)} here and {list(found.shape)} there"
    yield from (f"{name} is only in the other" for name in other.likes if name.partition(".")[0] in shared and name not in first.likes)


def _is_inpainting(name: str, like: Tensor, found: Tensor) -> bool:
    return name == "unet.conv_in.weight" and like.shape[1] > found.shape[1] and like.shape[0] == found.shape[0]


def baked(base: Weights, adapters: Sequence[tuple[Mapping[str, Delta], float]]) -> Weights:
    """The weights with adapters added for good. Each is (common module name -> what it changes there, strength)."""

    def make(name: str) -> Tensor:
        tensor = base.make(name)
        module, _, kind = name.rpartition(".")
        found = [(deltas[module], strength) for deltas, strength in adapters if module in deltas]
        if not found:
            return tensor
        # All are measured against the weight as it was, as when they are applied live.
        original = tensor.float()
        total = original.clone()
        for delta, strength in found:
            if kind == "weight":
                total += delta.weight(original) * strength
            elif kind == "bias" and delta.bias is not None:
                total += delta.bias.float() * strength
        return total.to(tensor.dtype)

    return Weights(base.likes, make, base.release)


def adaptable_shapes(weights: Weights) -> dict[str, dict[str, torch.Size]]:
    """Component -> module -> shape of its weight, of all that an adapter can change."""
    found: dict[str, dict[str, torch.Size]] = {}
    for name, like in weights.likes.items():
        component, _, inside = name.partition(".")
        if component != "vae" and inside.endswith(".weight") and not inside.endswith("embedding.weight"):
            found.setdefault(component, {})[inside.removesuffix(".weight")] = like.shape
    return found


def replaced(base: Weights, other: Weights, component: str) -> Weights:
    """The weights with a component from elsewhere."""
    prefix = f"{component}."
    taken = {name: like for name, like in other.likes.items() if name.startswith(prefix)}
    likes = {name: like for name, like in base.likes.items() if not name.startswith(prefix)} | taken
    return Weights(
        likes,
        lambda name: (other if name in taken else base).make(name),
        lambda name: (other if name in taken else base).release(name),
    )


def cast(base: Weights, dtype: torch.dtype) -> Weights:
    """The weights in another number format; whole numbers stay."""

    def make(name: str) -> Tensor:
        tensor = base.make(name)
        if not tensor.is_floating_point():
            return tensor
        found = tensor.to(dtype)
        if found.dtype is torch.float16 and tensor.dtype is not torch.float16 and not is_finite(found) and is_finite(tensor):
            most = float(tensor.float().abs().max())
            raise WeightFileError(f"dtype=float16: {name} holds {most:.4g}, more than float16 can (65504). Use dtype=bfloat16.")
        return found

    return Weights({name: like.to(dtype) if like.is_floating_point() else like for name, like in base.likes.items()}, make, base.release)
