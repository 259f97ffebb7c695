"""The autoencoder of Stable Diffusion and FLUX.1. The original counts the decoder's levels from the finest.

Source: CompVis' latent diffusion.
"""

from __future__ import annotations

from collections.abc import Collection

from sdbatch.naming.rule import Names, Rule, highest, pairs

TOP = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
HALF = {
    "conv_in": "conv_in",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
"""Within the encoder and the decoder."""

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""Convolutions of one pixel in the original, matrices in diffusers."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers named them before 2023; folders of that time are still about."""


def vae_names(names: Collection[str]) -> Names:
    """The names of a VAE of this size, in whichever spelling the given ones are."""
    levels = 1 + highest(names, r"(?:encoder\.down|decoder\.up)(?:_blocks)?\.(\d+)\.")
    layers = 1 + highest(names, r"(?:encoder\.down|decoder\.up)(?:_blocks)?\.\d+\.(?:block|resnets)\.(\d+)\.")
    rules, aliases = pairs(TOP), list[Rule]()
    for half in ("encoder.", "decoder."):
        rules += pairs(HALF, half, half)
        attention = f"{half}mid_block.attentions.0."
        rules += pairs(ATTENTION, f"{half}mid.attn_1.", attention, "conv")
        aliases += pairs(OLD_ATTENTION, attention, attention)
    for level in range(levels):
        rules += _level(f"encoder.down.{level}.", f"encoder.down_blocks.{level}.", "down", layers)
        rules += _level(f"decoder.up.{levels - 1 - level}.", f"decoder.up_blocks.{level}.", "up", layers)
    return Names(rules, aliases)


def _level(original: str, ours: str, way: str, layers: int) -> list[Rule]:
    table = {f"{way}sample.conv": f"{way}samplers.0.conv"}
    for layer in range(layers):
        table |= {f"block.{layer}": f"resnets.{layer}", f"block.{layer}.nin_shortcut": f"resnets.{layer}.conv_shortcut"}
    return pairs(table, original, ours)
