"""The names that the original codes give to the parts of a model, beside diffusers' names: tables for both directions.

A rule pairs an original module (or tensor) with the diffusers modules it stands for; what follows the module in a name
(`.weight`) is the same on both sides. Sources: CompVis' and Stability's Stable Diffusion, OpenCLIP, Black Forest Labs' FLUX.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sdbatch.families import flux_names


class Rule(NamedTuple):
    """One module in both namings."""

    original: str
    diffusers: tuple[str, ...]
    """Several where the original keeps them stacked in one tensor."""
    form: str = "plain"
    """How the tensors differ: a key of `sdbatch.merge.piece.FORMS`."""
    shares: tuple[int, ...] = ()
    """Rows of the stacked parts relative to each other; empty: equal."""


def _pairs(*pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(original, (diffusers,)) for original, diffusers in pairs]


_UNET_ENDS = _pairs(
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def unet_rules(layers: int, blocks: int, attention_ups: frozenset[int]) -> list[Rule]:
    """A Stable Diffusion UNet with so many residual layers per block; `attention_ups`: the up blocks that have attention."""
    rules = list(_UNET_ENDS)
    step = layers + 1
    for block in range(blocks):
        for layer in range(layers):
            place = f"input_blocks.{1 + block * step + layer}"
            rules += _unet_layer(place, f"down_blocks.{block}", layer)
        rules += _pairs((f"input_blocks.{(block + 1) * step}.0.op", f"down_blocks.{block}.downsamplers.0.conv"))
        for layer in range(step):
            rules += _unet_layer(f"output_blocks.{block * step + layer}", f"up_blocks.{block}", layer)
        # It follows the attention where the block has one.
        place = f"output_blocks.{block * step + layers}.{2 if block in attention_ups else 1}.conv"
        rules += _pairs((place, f"up_blocks.{block}.upsamplers.0.conv"))
    rules += [*_resnet("middle_block.0", "mid_block.resnets.0"), *_resnet("middle_block.2", "mid_block.resnets.1")]
    return rules + _pairs(("middle_block.1", "mid_block.attentions.0"))


def _unet_layer(original: str, block: str, layer: int) -> list[Rule]:
    return [*_resnet(f"{original}.0", f"{block}.resnets.{layer}"), *_pairs((f"{original}.1", f"{block}.attentions.{layer}"))]


def _resnet(original: str, diffusers: str) -> list[Rule]:
    return _pairs(*((f"{original}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in _RESNET))


def vae_rules(blocks: int) -> list[Rule]:
    """An autoencoder with so many levels; the original counts the decoder's from the finest."""
    rules = _pairs(("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for half in ("encoder", "decoder"):
        rules += _pairs(*((f"{half}.{ours}", f"{half}.{theirs}") for ours, theirs in _VAE_ENDS))
        rules += [
            Rule(f"{half}.mid.attn_1.{ours}", (f"{half}.mid_block.attentions.0.{theirs}",), "conv") for ours, theirs in _VAE_ATTENTION
        ]
        rules += _pairs(*((f"{half}.mid.block_{index + 1}", f"{half}.mid_block.resnets.{index}") for index in (0, 1)))
    for block in range(blocks):
        mirrored = blocks - 1 - block
        rules += _pairs((f"encoder.down.{block}.downsample.conv", f"encoder.down_blocks.{block}.downsamplers.0.conv"))
        rules += _pairs((f"decoder.up.{mirrored}.upsample.conv", f"decoder.up_blocks.{block}.upsamplers.0.conv"))
        for layer in range(4):
            for ours, theirs in (
                (f"encoder.down.{block}.block.{layer}", f"encoder.down_blocks.{block}.resnets.{layer}"),
                (f"decoder.up.{mirrored}.block.{layer}", f"decoder.up_blocks.{block}.resnets.{layer}"),
            ):
                rules += _pairs((ours, theirs), (f"{ours}.nin_shortcut", f"{theirs}.conv_shortcut"))
    return rules


_VAE_ENDS = (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out"))
_VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))


def openclip_rules(layers: int) -> list[Rule]:
    """An OpenCLIP text encoder, which transformers keeps in its own CLIP's names."""
    rules = _pairs(
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("ln_final", "text_model.final_layer_norm"),
    )
    rules.append(Rule("text_projection", ("text_projection.weight",), "transposed"))
    for layer in range(layers):
        ours, theirs = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        rules += _pairs(*((f"{ours}.{own}", f"{theirs}.{other}") for own, other in _OPENCLIP_LAYER))
        for kind in ("weight", "bias"):
            stacked = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            rules.append(Rule(f"{ours}.attn.in_proj_{kind}", stacked))
    return rules


_OPENCLIP_LAYER = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def flux_rules(double: int, single: int) -> list[Rule]:
    """FLUX.1's transformer with so many double and single blocks."""
    rules = _pairs(*flux_names.TOP.items())
    rules.append(Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), "swapped"))
    for index in range(double):
        rules += _flux_block(f"double_blocks.{index}", f"transformer_blocks.{index}", _FLUX_DOUBLE)
    for index in range(single):
        ours, theirs = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        rules += _flux_block(ours, theirs, _FLUX_SINGLE)
        parts = flux_names.SINGLE_PACKED["linear1"]
        # The feed-forward part is four times as wide as the states in every FLUX.1.
        rules.append(Rule(f"{ours}.linear1", tuple(f"{theirs}.{part}" for part in parts), shares=(1, 1, 1, 4)))
    return rules


def _flux_block(ours: str, theirs: str, table: Iterable[tuple[str, tuple[str, ...]]]) -> list[Rule]:
    return [Rule(f"{ours}.{own}", tuple(f"{theirs}.{part}" for part in parts)) for own, parts in table]


def _flux_parts(plain: Mapping[str, str], packed: Mapping[str, tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """The layers of a block. What the original calls the scale of a norm is its weight in diffusers."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for ours, theirs in plain.items():
        found.append((f"{ours}.scale", (f"{theirs}.weight",)) if ours.endswith("_norm") else (ours, (theirs,)))
    return [*found, *packed.items()]


_FLUX_DOUBLE = _flux_parts(flux_names.DOUBLE, flux_names.DOUBLE_PACKED)
_FLUX_SINGLE = _flux_parts(flux_names.SINGLE, {})
