"""Builds a module around tensors that are already in memory, and refuses one that is not complete."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.adapters.read import Tensors
from sdbatch.errors import WeightFileError


def build_module(what: str, build: Callable[[Any], Any], config: Any, state: Tensors, dtype: torch.dtype) -> nn.Module:
    """A module in eval mode whose parameters are the given tensors themselves (no second copy where the dtype is right).

    Args:
        what: The key path named in errors.
        build: Makes the module from its config; called where nothing is allocated.
        config: The config.
        state: Every tensor of the module, by its name in it.
        dtype: The dtype of the parameters.

    Raises:
        WeightFileError: keys are missing or left over, or a shape differs.
    """
    with torch.device("meta"), _without_first_values():
        module: nn.Module = build(config)
    left = {key: tensor for key, tensor in state.items() if not key.endswith(_POSITIONS)}
    missing: list[str] = []
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, empty in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if name == _POSITIONS:
                owner.register_buffer(name, torch.arange(empty.shape[-1]).expand(empty.shape).contiguous(), persistent=False)
            elif (tensor := left.pop(prefix + name, None)) is None:
                missing.append(prefix + name)
            elif tensor.shape != empty.shape:
                shapes = f"has the shape {[*tensor.shape]}, by the model's config it should have {[*empty.shape]}"
                raise WeightFileError(f"{what}: its {prefix}{name} {shapes}.")
            elif isinstance(empty, nn.Parameter):
                owner.register_parameter(name, nn.Parameter(_cast(tensor, dtype), requires_grad=False))
            else:
                owner.register_buffer(name, _cast(tensor, dtype))
    if missing or left:
        found = _describe(missing, "missing") + _describe([*left], "left over")
        raise WeightFileError(f"{what}: {found}the file is not complete or of another family.")
    return module.eval()


_POSITIONS = "position_ids"
"""CLIP's numbers 0, 1, 2 ...: some files hold them, and those of half precision hold them rounded. They are computed instead."""

_FIRST_VALUES: dict[type[nn.Module], Callable[[Any], None]] = {
    layer: layer.reset_parameters for layer in (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)
}


@contextmanager
def _without_first_values() -> Generator[None]:
    """Layers are not filled, which is half of the time that it takes to build a module of which nothing is allocated."""
    for layer in _FIRST_VALUES:
        setattr(layer, "reset_parameters", _leave)  # noqa: B010  (a checker takes an assignment for a mistake)
    try:
        yield
    finally:
        for layer, fill in _FIRST_VALUES.items():
            setattr(layer, "reset_parameters", fill)  # noqa: B010


def _leave(layer: nn.Module) -> None:
    del layer


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _describe(keys: list[str], word: str) -> str:
    return f"{len(keys)} keys are {word} (first {keys[0]}); " if keys else ""
