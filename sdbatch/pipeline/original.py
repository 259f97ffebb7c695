"""Brings the names of tensors in single files to the names of the modules of diffusers and transformers.

Each function takes the tensors of one component, their prefix taken off, in any dialect that is about, and hands them
over under the module's own names. Tensors are renamed or cut into views, hardly ever copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from sdbatch.adapters.read import Tensors
from sdbatch.pipeline.flux_names import rename_flux

_LDM_UNET = "model.diffusion_model."
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_OLD_VAE_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""How diffusers named the VAE's attention before 2023; folders of that time are still about."""

_CLIP_PREFIXES = (
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "text_encoder.",
    "text_encoder_2.",
    "text_model.",
)
"""What the keys of a text encoder's own file may begin with, outermost first."""

_CLIP_EXTRAS = ("logit_scale", "vision_model", "visual", "position_ids", "embeddings.position_ids")
"""Parts of a whole CLIP that a text encoder has no use for."""

_OPENCLIP_TOP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPENCLIP_LAYER = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_T5_PREFIXES = ("text_encoders.t5xxl.transformer.", "text_encoder_2.")


def rename_unet(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A UNet's tensors, from diffusers' names or the original ones."""
    if not any(key.startswith("input_blocks.") for key in state):
        return state
    return convert_ldm_unet_checkpoint({_LDM_UNET + key: tensor for key, tensor in state.items()}, config)


def rename_vae(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A VAE's tensors, from diffusers' names, old or new, or the original ones."""
    state = _strip(state, _VAE_PREFIXES)
    if not any("down_blocks" in key for key in state):
        state = convert_ldm_vae_checkpoint(state, config)
    for old, new in _OLD_VAE_NAMES:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


def rename_clip(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A CLIP text encoder's tensors without its projection, from CLIP's or OpenCLIP's names."""
    named = _name_clip(state, int(config["num_hidden_layers"]))
    return {key: tensor for key, tensor in named.items() if not key.startswith("text_projection")}


def rename_clip_with_projection(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A CLIP text encoder's tensors and its projection, from CLIP's or OpenCLIP's names."""
    named = _name_clip(state, int(config["num_hidden_layers"]))
    return {key if key.startswith("text_projection") else f"text_model.{key}": tensor for key, tensor in named.items()}


def _name_clip(state: Tensors, layers: int) -> Tensors:
    for prefix in _CLIP_PREFIXES:
        state = _strip(state, (prefix,))
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_CLIP_EXTRAS)}
    if not any(key.startswith("transformer.resblocks.") for key in state):
        return state
    named: Tensors = {}
    for key, tensor in state.items():
        if key == "text_projection":
            named["text_projection.weight"] = tensor.T.contiguous()
        elif key in _OPENCLIP_TOP:
            named[_OPENCLIP_TOP[key]] = tensor
        elif (found := re.match(r"transformer\.resblocks\.(\d+)\.", key)) and int(found[1]) < layers:
            named |= _name_openclip_layer(key, tensor)
    return named


def _name_openclip_layer(key: str, tensor: torch.Tensor) -> Tensors:
    key = key.replace("transformer.resblocks.", "encoder.layers.")
    for theirs, ours in _OPENCLIP_LAYER:
        key = key.replace(theirs, ours)
    if found := re.search(r"in_proj_(weight|bias)$", key):
        stem = key[: found.start()]
        return {f"{stem}{part}_proj.{found[1]}": view for part, view in zip("qkv", tensor.chunk(3), strict=True)}
    return {key: tensor}


def rename_t5(state: Tensors, config: Mapping[str, Any]) -> Tensors:
    """T5's encoder's tensors; its one table of tokens has two names."""
    del config
    state = _strip(state, _T5_PREFIXES)
    state = {key: tensor for key, tensor in state.items() if key.startswith("encoder.") or key == "shared.weight"}
    names = ("shared.weight", "encoder.embed_tokens.weight")
    table = next((state[name] for name in names if name in state), None)
    return state if table is None else {**state, **dict.fromkeys(names, table)}


def _strip(state: Tensors, prefixes: tuple[str, ...]) -> Tensors:
    """The tensors under one of the prefixes, without it; all of them when none has one."""
    for prefix in prefixes:
        if any(key.startswith(prefix) for key in state):
            kept = {key: tensor for key, tensor in state.items() if key.startswith(prefix) or key.startswith("text_projection")}
            return {key.removeprefix(prefix): tensor for key, tensor in kept.items()}
    return state


RENAMERS: dict[str, Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    "UNet2DConditionModel": rename_unet,
    "FluxTransformer2DModel": rename_flux,
    "AutoencoderKL": rename_vae,
    "CLIPTextModel": rename_clip,
    "CLIPTextModelWithProjection": rename_clip_with_projection,
    "T5EncoderModel": rename_t5,
}
"""Class of a component -> what brings its tensors to their names there."""


def unscale(state: Tensors) -> Tensors:
    """Tensors stored in 8 bits with a scale beside them, brought to bfloat16; all others as they are."""
    scales = {key: key.removesuffix("scale_weight") + "weight" for key in state if key.endswith(".scale_weight")}
    if not scales:
        return state
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(("scale_weight", "scale_input", "scaled_fp8"))}
    for scale, weight in scales.items():
        plain[weight] = plain[weight].to(torch.bfloat16) * state[scale].to(torch.bfloat16)
    return plain
