"""FLUX.1's transformer. The original packs the query, key and value of an attention into one matrix; diffusers has them apart.

Source: Black Forest Labs' code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sdbatch.naming.rule import Names, Piece, Rule, highest, pairs

TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
SWAPPED = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
"""Shift, then scale; diffusers has them the other way round."""

DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
"""Within `double_blocks.N`, which is `transformer_blocks.N`."""

SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
    "linear2": "proj_out",
}
"""Within `single_blocks.N`, which is `single_transformer_blocks.N`."""

_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE_PACKED = {"img_attn.qkv": Piece(_IMAGE), "txt_attn.qkv": Piece(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"))}
# The feed-forward part is four times as wide as the states in every FLUX.1.
SINGLE_PACKED = {"linear1": Piece((*_IMAGE, "proj_mlp"), shares=(1, 1, 1, 4))}
"""Layers that hold several of diffusers', one above the other."""


def flux_names(names: Collection[str]) -> Names:
    """The names of a transformer of this size, in whichever spelling the given ones are."""
    rules = [*pairs(TOP), *pairs(SWAPPED, form="swapped")]
    for index in range(1 + highest(names, r"(?:double_blocks|transformer_blocks)\.(\d+)\.")):
        rules += _block(f"double_blocks.{index}.", f"transformer_blocks.{index}.", DOUBLE, DOUBLE_PACKED)
    for index in range(1 + highest(names, r"(?:single_blocks|single_transformer_blocks)\.(\d+)\.")):
        rules += _block(f"single_blocks.{index}.", f"single_transformer_blocks.{index}.", SINGLE, SINGLE_PACKED)
    return Names(rules)


def _block(original: str, ours: str, plain: Mapping[str, str], packed: Mapping[str, Piece]) -> list[Rule]:
    rules = pairs(plain, original, ours)
    for name, piece in packed.items():
        rules.append(Rule(original + name, piece._replace(names=tuple(ours + part for part in piece.names))))
    return rules
