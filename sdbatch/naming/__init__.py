"""The names of a model's layers in the original codes and in diffusers and transformers: one table per architecture.

Loading, merging, converting and adapters all read these. Nothing here imports torch; `sdbatch.adapters.piece` turns tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sdbatch.naming.flux import flux_names
from sdbatch.naming.rule import Names, Piece
from sdbatch.naming.text import clip_names, openclip_names, t5_names
from sdbatch.naming.unet import controlnet_names, unet_names
from sdbatch.naming.vae import vae_names

__all__ = ["NAMINGS", "Names", "Piece", "find_naming", "names_of"]

NAMINGS: dict[str, tuple[Callable[[Collection[str]], Names], tuple[str, ...]]] = {
    "controlnet": (controlnet_names, ("zero_convs.", "controlnet_down_blocks.")),
    "unet": (unet_names, ("input_blocks.", "down_blocks.")),
    "transformer": (flux_names, ("double_blocks.", "single_transformer_blocks.")),
    "vae": (vae_names, ("decoder.conv_in.", "encoder.conv_in.")),
    "openclip": (openclip_names, ("transformer.resblocks.",)),
    "clip": (clip_names, ("text_model.", "embeddings.", "encoder.layers.")),
    "t5": (t5_names, ("encoder.block.", "shared.")),
}
"""Naming -> its table for a component of a size, and what one of the component's names begins with, in either spelling.
The first that fits counts: a ControlNet has a UNet's layers too."""


def find_naming(names: Collection[str]) -> str | None:
    """The naming of one component's tensors, or None when they are no component's."""
    return next((naming for naming, (_, marks) in NAMINGS.items() if any(name.startswith(marks) for name in names)), None)


def names_of(naming: str, names: Collection[str]) -> Names:
    """The table of a naming for a component of the size that these names have."""
    return NAMINGS[naming][0](names)
