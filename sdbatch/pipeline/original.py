"""Brings the names of tensors in files to the names of the modules of diffusers and transformers.

Each function takes the tensors of one component, their prefix taken off, in any dialect that is about, and hands them
over under the module's own names. Tensors are renamed or cut into views, hardly ever copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sdbatch.adapters.piece import read_component
from sdbatch.adapters.read import SCALES, Tensors
from sdbatch.errors import WeightFileError
from sdbatch.naming import find_naming, names_of

_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")


def _rename_image_part(naming: str) -> Callable[[Tensors, Mapping[str, Any]], Tensors]:
    def rename(state: Tensors, config: Mapping[str, Any]) -> Tensors:
        del config
        names = names_of(naming, state)
        return read_component(state, names, is_denoiser=naming != "vae") if names.is_original(state) else state

    return rename


def _rename_clip(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A CLIP text encoder's tensors without its projection, from CLIP's or OpenCLIP's names."""
    named = _rename_clip_with_projection(state, config)
    return {key.removeprefix("text_model."): tensor for key, tensor in named.items() if not key.startswith("text_projection")}


def _rename_clip_with_projection(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A CLIP text encoder's tensors and its projection, from CLIP's or OpenCLIP's names."""
    named = read_component(state, names_of(find_naming(state) or "clip", state))
    return {key: tensor for key, tensor in named.items() if _layer(key) < int(config["num_hidden_layers"])}


def _layer(key: str) -> int:
    """Files of SD 2.x have a layer more than the family takes."""
    found = _CLIP_LAYER.match(key)
    return int(found[1]) if found else -1


def _rename_t5(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """T5's encoder's tensors; its one table of tokens has two names."""
    del config
    named = read_component(state, names_of("t5", state))
    return {**named, "encoder.embed_tokens.weight": named["shared.weight"]}


RENAMERS: dict[str, Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    "UNet2DConditionModel": _rename_image_part("unet"),
    "FluxTransformer2DModel": _rename_image_part("transformer"),
    "AutoencoderKL": _rename_image_part("vae"),
    "CLIPTextModel": _rename_clip,
    "CLIPTextModelWithProjection": _rename_clip_with_projection,
    "T5EncoderModel": _rename_t5,
}
"""Class of a component -> what brings its tensors to their names there."""


_BESIDE = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


def unscale(state: Tensors) -> Tensors:
    """Tensors stored in 8 bits with a scale beside them, brought to bfloat16; all others as they are.

    Raises:
        WeightFileError: the scale is of another form than one number for a matrix of float8.
    """
    scales = {key: f"{key.rpartition('.')[0]}.weight" for key in state if key.endswith(SCALES)}
    if not scales:
        return state
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(_BESIDE)}
    for scale, weight in scales.items():
        if weight not in plain or not plain[weight].is_floating_point() or state[scale].numel() != 1:
            raise WeightFileError(f"{weight} is stored in another form than float8 with one scale. Choose the fp8, fp16 or bf16 version.")
        plain[weight] = plain[weight].to(torch.bfloat16) * state[scale].to(torch.bfloat16)
    return plain
