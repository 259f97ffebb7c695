"""The text encoders: CLIP as transformers has it, the same network as OpenCLIP has it, and T5.

Source: OpenCLIP; transformers.
"""

from __future__ import annotations

from collections.abc import Collection

from sdbatch.naming.rule import Names, Piece, Rule, highest, pairs

OPENCLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

UNPREFIXED = {name: f"text_model.{name}" for name in ("embeddings", "encoder.layers", "final_layer_norm")}
"""transformers of 2026 writes a text encoder without the prefix; every version reads it with the prefix."""

_NOTHING = [Rule(f"{root}embeddings.position_ids", Piece(())) for root in ("", "text_model.")]
"""Numbers from 0 to 76, which older versions saved."""


def clip_names(names: Collection[str]) -> Names:
    """The names of a CLIP text encoder in transformers, which original files keep as they are."""
    del names
    return Names(pairs({"text_model": "text_model", "text_projection": "text_projection"}), [*pairs(UNPREFIXED), *_NOTHING])


def openclip_names(names: Collection[str]) -> Names:
    """The names of an OpenCLIP text encoder with as many layers as these."""
    layers = 1 + highest(names, r"(?:transformer\.resblocks|(?:text_model\.)?encoder\.layers)\.(\d+)\.")
    rules = [*pairs(OPENCLIP), *pairs({"text_projection": "text_projection.weight"}, form="transposed")]
    for layer in range(layers):
        original, ours = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        rules += pairs(OPENCLIP_LAYER, original, ours)
        for kind in ("weight", "bias"):
            stacked = tuple(f"{ours}self_attn.{part}_proj.{kind}" for part in "qkv")
            rules.append(Rule(f"{original}attn.in_proj_{kind}", Piece(stacked)))
    return Names(rules, [*pairs(UNPREFIXED), *_NOTHING])


def t5_names(names: Collection[str]) -> Names:
    """The names of T5's encoder in transformers, which original files keep as they are."""
    del names
    # Its table of words has a second name.
    return Names(pairs({"encoder": "encoder", "shared": "shared"}), pairs({"encoder.embed_tokens": "shared"}))
