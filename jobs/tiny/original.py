"""Names of the original (CompVis) single-file layout, which A1111 and ComfyUI read, from diffusers' names."""

import re

import torch

Weights = dict[str, torch.Tensor]
Rules = list[tuple[str, str]]

UNET_RESNET: Rules = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
UNET_ENDS: Rules = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]
VAE_RULES: Rules = [
    (r"encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.conv", r"encoder.down.\1.downsample.conv"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
]


def unet_module(name: str, layers: int, blocks: int) -> str:
    """One module name of the U-Net. `layers` per down block; up blocks have one more."""
    for diffusers, original in UNET_ENDS:
        if name == diffusers:
            return original
    head, *rest = re.sub(r"^mid_block", "mid_block.0", name).split(".")
    block, kind, index, tail = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    for diffusers, original in UNET_RESNET if kind == "resnets" else []:
        tail = original if tail == diffusers else tail
    match head, kind:
        case "mid_block", _:
            place = f"middle_block.{2 * index if kind == 'resnets' else 2 * index + 1}"
        case "down_blocks", "downsamplers":
            place, tail = f"input_blocks.{(block + 1) * (layers + 1)}.0", "op"
        case "down_blocks", _:
            place = f"input_blocks.{1 + block * (layers + 1) + index}.{0 if kind == 'resnets' else 1}"
        case _, "upsamplers":
            # It follows the attention where the block has one; in SD 1.x's layout only the first block has none.
            place = f"output_blocks.{block * (layers + 1) + layers}.{1 if block == 0 else 2}"
        case _:
            place = f"output_blocks.{block * (layers + 1) + index}.{0 if kind == 'resnets' else 1}"
    if blocks <= block:
        raise ValueError(f"{name}: block {block} of {blocks}")
    return f"{place}.{tail}"


def to_original_unet(weights: Weights, layers: int = 1, blocks: int = 3) -> Weights:
    """U-Net weights under `model.diffusion_model.`."""
    renamed = {}
    for key, value in weights.items():
        module, _, kind = key.rpartition(".")
        renamed[f"model.diffusion_model.{unet_module(module, layers, blocks)}.{kind}"] = value
    return renamed


def to_original_vae(weights: Weights, blocks: int = 4, prefix: str = "first_stage_model.") -> Weights:
    """Autoencoder weights; the attention's matrices become 1×1 convolutions, as they were."""
    renamed = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in VAE_RULES:
            name = re.sub(pattern, replacement, name)
        # The decoder counts its levels from the finest.
        up = r"decoder\.up_blocks\.(\d)\.(resnets\.|upsamplers\.0\.)"
        name = re.sub(up, lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.{_up_part(m[2])}", name)
        matrix = ".mid.attn_1." in name and value.ndim == 2
        renamed[prefix + name] = value[:, :, None, None] if matrix else value
    return renamed


def _up_part(name: str) -> str:
    return "block." if name == "resnets." else "upsample."


def to_text_model(weights: Weights) -> Weights:
    """CLIP text weights under `text_model.`, which every version of transformers reads."""
    return {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in weights.items()}


def to_original_text(weights: Weights) -> Weights:
    """CLIP text weights under `cond_stage_model.transformer.`."""
    return {f"cond_stage_model.transformer.{key}": value for key, value in to_text_model(weights).items()}


def to_original_controlnet(weights: Weights, layers: int = 1, blocks: int = 3) -> Weights:
    """ControlNet weights under `control_model.`."""
    renamed = {}
    for key, value in weights.items():
        module, _, kind = key.rpartition(".")
        name = _controlnet_module(module) if module.startswith("controlnet_") else unet_module(module, layers, blocks)
        renamed[f"control_model.{name}.{kind}"] = value
    return renamed


def _controlnet_module(module: str) -> str:
    part, _, tail = module.partition(".")
    match part, tail:
        case "controlnet_down_blocks", number:
            return f"zero_convs.{number}.0"
        case "controlnet_mid_block", _:
            return "middle_block_out.0"
        case _, "conv_in":
            return "input_hint_block.0"
        case _, "conv_out":
            return "input_hint_block.14"
        case _:
            return f"input_hint_block.{2 * int(tail.rpartition('.')[2]) + 2}"


def to_single_file(unet: Weights, vae: Weights, text: Weights) -> Weights:
    """All weights of one checkpoint."""
    return {**to_original_unet(unet), **to_original_vae(vae), **to_original_text(text)}
