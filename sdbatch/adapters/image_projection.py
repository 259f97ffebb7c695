"""What an IP-Adapter makes of an image encoder's words: tokens that attention reads beside those of the text.

Source of the file formats: tencent-ailab/IP-Adapter. The modules are diffusers', with its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection, IPAdapterPlusImageProjection
from torch import nn

from sdbatch.adapters.module import build_module
from sdbatch.adapters.read import Tensors
from sdbatch.errors import WeightFileError

_HEAD_WIDTH = 64
"""Of the resampler's attention, in every file there is."""

_PLAIN_NAMES = ((r"^proj\.", "image_embeds."),)
_FULL_NAMES = ((r"^proj\.0\.", "ff.net.0.proj."), (r"^proj\.2\.", "ff.net.2."), (r"^proj\.3\.", "norm."))
_PLUS_NAMES = (
    (r"^(layers\.\d+)\.0\.norm1\.", r"\1.ln0."),
    (r"^(layers\.\d+)\.0\.norm2\.", r"\1.ln1."),
    (r"^(layers\.\d+)\.0\.to_out\.", r"\1.attn.to_out.0."),
    (r"^(layers\.\d+)\.0\.", r"\1.attn."),
    (r"^(layers\.\d+)\.1\.0\.", r"\1.ff.0."),
    (r"^(layers\.\d+)\.1\.1\.", r"\1.ff.1.net.0.proj."),
    (r"^(layers\.\d+)\.1\.3\.", r"\1.ff.1.net.2."),
)


def build_projection(what: str, state: Tensors, dtype: torch.dtype) -> tuple[nn.Module, bool]:
    """The projection of an IP-Adapter, and whether it reads every patch of the picture in place of the summary.

    Args:
        what: The key path named in errors.
        state: The tensors of `image_proj`.
        dtype: Of the parameters.

    Raises:
        WeightFileError: a projection of a kind that is not run, or incomplete.
    """
    try:
        if "proj.weight" in state:
            return build_module(what, *_plain(state), dtype), False
        if "proj.3.weight" in state:
            return build_module(what, *_full(state), dtype), True
        if "latents" in state:
            return build_module(what, *_plus(state), dtype), True
    except KeyError as error:
        raise WeightFileError(f"{what}: image_proj.{error.args[0]} is missing; the file is not complete.") from error
    raise WeightFileError(
        f"{what}: its image projection is of no known kind ({', '.join(sorted(state)[:3])}, ...). Choose another IP-Adapter."
    )


_Parts = tuple[Callable[[Any], nn.Module], dict[str, int], Tensors]
"""What makes the module, its settings, its tensors."""


def _plain(state: Tensors) -> _Parts:
    width = state["norm.weight"].shape[0]
    outputs, inputs = state["proj.weight"].shape
    settings = {"image_embed_dim": inputs, "cross_attention_dim": width, "num_image_text_embeds": outputs // width}
    return lambda given: ImageProjection(**given), settings, _rename(state, _PLAIN_NAMES)


def _full(state: Tensors) -> _Parts:
    settings = {"image_embed_dim": state["proj.0.weight"].shape[1], "cross_attention_dim": state["proj.3.weight"].shape[0]}
    return lambda given: IPAdapterFullImageProjection(**given), settings, _rename(state, _FULL_NAMES)


def _plus(state: Tensors) -> _Parts:
    hidden = state["latents"].shape[2]
    settings = {
        "embed_dims": state["proj_in.weight"].shape[1],
        "output_dims": state["proj_out.weight"].shape[0],
        "hidden_dims": hidden,
        "depth": len({key.split(".")[1] for key in state if key.startswith("layers.")}),
        "dim_head": _HEAD_WIDTH,
        "heads": state["layers.0.0.to_q.weight"].shape[0] // _HEAD_WIDTH,
        "num_queries": state["latents"].shape[1],
        "ffn_ratio": state["layers.0.1.1.weight"].shape[0] // hidden,
    }
    apart: Tensors = {}
    for key, tensor in state.items():
        if key.endswith(".to_kv.weight"):
            apart |= {key.replace("to_kv", part): half for part, half in zip(("to_k", "to_v"), tensor.chunk(2), strict=True)}
        else:
            apart[key] = tensor
    return lambda given: IPAdapterPlusImageProjection(**given), settings, _rename(apart, _PLUS_NAMES)


def _rename(state: Tensors, names: tuple[tuple[str, str], ...]) -> Tensors:
    """The tensors under diffusers' names: of each name the first pattern that fits is replaced."""
    found: Tensors = {}
    for key, tensor in state.items():
        replaced = (re.sub(pattern, name, key) for pattern, name in names)
        found[next((name for name in replaced if name != key), key)] = tensor
    return found
