"""The names of FLUX's transformer in its original code, brought to diffusers', for a transformer of any width.

The original packs the query, key and value of an attention into one matrix; diffusers has them apart. They become views.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdbatch.adapters.read import Tensors
from sdbatch.families.flux_names import DOUBLE, DOUBLE_PACKED, SINGLE, SINGLE_PACKED, TOP

_PACKED = {**DOUBLE_PACKED, **SINGLE_PACKED}
"""Matrices that hold several of diffusers', one above the other; all but the last as tall as the transformer is wide."""

_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def rename_flux(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The tensors of FLUX's transformer, from diffusers' names or the original ones."""
    if not any(key.startswith("double_blocks.") for key in state):
        return state
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    named: Tensors = {}
    for key, tensor in state.items():
        module, kind = key.rsplit(".", 1)
        kind = "weight" if kind == "scale" else kind
        if module == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)  # diffusers has them the other way round
            named[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
        elif found := _BLOCK.fullmatch(module):
            named |= _name_block(found, kind, tensor, width)
        else:
            named[f"{TOP.get(module, module)}.{kind}"] = tensor
    return named


def _name_block(found: re.Match[str], kind: str, tensor: Tensor, width: int) -> Tensors:
    is_double = found[1] == "double"
    prefix = f"{'' if is_double else 'single_'}transformer_blocks.{found[2]}."
    if found[3] in _PACKED:
        parts = _PACKED[found[3]]
        rest = tensor.shape[0] - width * (len(parts) - 1)
        views = tensor.split([width] * (len(parts) - 1) + [rest])
        return {f"{prefix}{part}.{kind}": view for part, view in zip(parts, views, strict=True)}
    name = (DOUBLE if is_double else SINGLE).get(found[3], found[3])
    return {f"{prefix}{name}.{kind}": tensor}
