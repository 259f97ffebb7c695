"""Builds a module around tensors that are already in memory, and refuses one that is not complete."""

from __future__ import annotations

from collections.abc import Callable
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
    with torch.device("meta"):
        module: nn.Module = build(config)
    try:
        result = module.load_state_dict({key: _cast(tensor, dtype) for key, tensor in state.items()}, strict=False, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise WeightFileError(f"{what}: its weights do not fit the model's config: {detail}") from error
    unexpected = [key for key in result.unexpected_keys if not key.endswith("position_ids")]
    if result.missing_keys or unexpected:
        found = _describe(result.missing_keys, "missing") + _describe(unexpected, "left over")
        raise WeightFileError(f"{what}: {found}the file is not complete or of another family.")
    _materialise_buffers(module)
    module.requires_grad_(False)
    return module.eval()


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _describe(keys: list[str], word: str) -> str:
    return f"{len(keys)} keys are {word} (first {keys[0]}); " if keys else ""


def _materialise_buffers(module: nn.Module) -> None:
    """Fill the buffers that files do not hold. CLIP's position numbers are the only ones in the families here."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            assert name == "position_ids", f"unknown buffer {name}: it must be computed here"
            owner.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape).contiguous(), persistent=False)
