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

_TOP = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_PACKED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
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
            named[f"{_TOP.get(module, module)}.{kind}"] = tensor
    return named


def _name_block(found: re.Match[str], kind: str, tensor: Tensor, width: int) -> Tensors:
    is_double = found[1] == "double"
    prefix = f"{'' if is_double else 'single_'}transformer_blocks.{found[2]}."
    if found[3] in _PACKED:
        parts = _PACKED[found[3]]
        rest = tensor.shape[0] - width * (len(parts) - 1)
        views = tensor.split([width] * (len(parts) - 1) + [rest])
        return {f"{prefix}{part}.{kind}": view for part, view in zip(parts, views, strict=True)}
    name = (_DOUBLE if is_double else _SINGLE).get(found[3], found[3])
    return {f"{prefix}{name}.{kind}": tensor}
