"""Every name by which files call a module of the model: diffusers' own, and those of the original code of each family.

A file may hold one matrix for layers that the model has apart (the fused q, k, v of FLUX and OpenCLIP): then a name stands
for several modules, whose outputs follow each other in its rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from sdbatch.adapters.dialect import flatten
from sdbatch.families import flux_names


@dataclass(frozen=True, slots=True)
class Target:
    """The modules that a name of a file stands for."""

    modules: tuple[str, ...]
    """In the order of the rows."""
    is_swapped: bool = False
    """The two halves of the rows stand the other way round in the model."""


def name_table(modules: Collection[str]) -> dict[str, Target]:
    """Flat name -> target, for every module of a component."""
    table = {flatten(name): Target((name,)) for name in modules}
    for other, target in _original_targets(modules):
        if all(name in modules for name in target.modules):
            table.setdefault(flatten(other), target)
    return table


def _original_targets(modules: Collection[str]) -> list[tuple[str, Target]]:
    if any(name.startswith("down_blocks.") for name in modules):
        return [(original, Target((name,))) for name, original in original_unet_names(modules).items()]
    if any(name.startswith("single_transformer_blocks.") for name in modules):
        return _flux_targets(modules)
    return _openclip_targets(modules)


def _indices(modules: Collection[str], pattern: str) -> list[int]:
    """The numbers that a pattern finds in the names of modules, each once."""
    return sorted({int(found[1]) for name in modules if (found := re.match(pattern, name))})


# ---- Stable Diffusion's UNet ------------------------------------------------------------------------------------------

_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet_names(modules: Collection[str]) -> dict[str, str]:
    """Module of diffusers' UNet -> its name in the original Stable Diffusion code."""
    resnets = _indices(modules, r"down_blocks\.0\.resnets\.(\d+)\.")
    attention_blocks = {name.split(".")[1] for name in modules if re.match(r"up_blocks\.\d+\.attentions\.0\.", name)}
    layers = max(resnets, default=0) + 1
    found = {name: original_name(name, layers, attention_blocks) for name in modules}
    return {name: original for name, original in found.items() if original is not None}


def original_name(name: str, layers: int, attention_up_blocks: set[str]) -> str | None:
    """The name that the original code gives to a module of diffusers' UNet, or None for none."""
    match name.split("."):
        case ["down_blocks", block, "downsamplers", "0", "conv"]:
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op"
        case ["down_blocks", block, "resnets", index, part]:
            return f"input_blocks.{1 + int(block) * (layers + 1) + int(index)}.0.{_BLOCK_PARTS.get(part, part)}"
        case ["down_blocks", block, "attentions", index, *rest]:
            return ".".join([f"input_blocks.{1 + int(block) * (layers + 1) + int(index)}.1", *rest])
        case ["mid_block", "resnets", index, part]:
            return f"middle_block.{2 * int(index)}.{_BLOCK_PARTS.get(part, part)}"
        case ["mid_block", "attentions", "0", *rest]:
            return ".".join(["middle_block.1", *rest])
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            return f"output_blocks.{int(block) * (layers + 1) + layers}.{2 if block in attention_up_blocks else 1}.conv"
        case ["up_blocks", block, "resnets", index, part]:
            return f"output_blocks.{int(block) * (layers + 1) + int(index)}.0.{_BLOCK_PARTS.get(part, part)}"
        case ["up_blocks", block, "attentions", index, *rest]:
            return ".".join([f"output_blocks.{int(block) * (layers + 1) + int(index)}.1", *rest])
        case _:
            return _TOP.get(name)


# ---- FLUX -------------------------------------------------------------------------------------------------------------

_FLUX_TOP = {**flux_names.TOP, "img_in.proj": "x_embedder"}
_FLUX_DOUBLE = {**flux_names.DOUBLE, "processor.proj_1": "attn.to_out.0", "processor.proj_2": "attn.to_add_out"}
_FLUX_SINGLE = {**flux_names.SINGLE, "processor.proj": "proj_out"}
_FUSED_DOUBLE = {**flux_names.DOUBLE_PACKED, "processor.qkv_1": flux_names.IMAGE_QKV, "processor.qkv_2": flux_names.TEXT_QKV}
_FUSED_SINGLE = {**flux_names.SINGLE_PACKED, "processor.qkv": flux_names.IMAGE_QKV}
"""XLabs' attention processors, and Black Forest Labs' fused layers."""


def _flux_targets(modules: Collection[str]) -> list[tuple[str, Target]]:
    found = [(theirs, Target((ours,))) for theirs, ours in _FLUX_TOP.items()]
    found.append(("final_layer.adaLN_modulation.1", Target(("norm_out.linear",), is_swapped=True)))
    tables = (
        ("double_blocks", "transformer_blocks", _FLUX_DOUBLE, _FUSED_DOUBLE),
        ("single_blocks", "single_transformer_blocks", _FLUX_SINGLE, _FUSED_SINGLE),
    )
    for theirs, ours, plain, fused in tables:
        for block in _indices(modules, rf"{ours}\.(\d+)\."):
            before, after = f"{theirs}.{block}.", f"{ours}.{block}."
            found += [(before + name, Target((after + module,))) for name, module in plain.items()]
            for name, parts in fused.items():
                found.append((before + name, Target(tuple(after + part for part in parts))))
                # OMI splits what it names as fused.
                found += [(f"{before}{name}.{index}", Target((after + part,))) for index, part in enumerate(parts)]
    return found


# ---- OpenCLIP ---------------------------------------------------------------------------------------------------------

_OPENCLIP_PARTS = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "ln_1": "layer_norm1"} | {
    "ln_2": "layer_norm2"
}


def _openclip_targets(modules: Collection[str]) -> list[tuple[str, Target]]:
    root = "text_model." if any(name.startswith("text_model.") for name in modules) else ""
    layers = _indices(modules, r"(?:text_model\.)?encoder\.layers\.(\d+)\.")
    found = [("ln_final", Target((f"{root}final_layer_norm",)))]
    for layer in layers:
        before, after = f"transformer.resblocks.{layer}.", f"{root}encoder.layers.{layer}."
        found += [(before + theirs, Target((after + ours,))) for theirs, ours in _OPENCLIP_PARTS.items()]
        found.append((before + "attn.in_proj", Target(tuple(f"{after}self_attn.{part}_proj" for part in "qkv"))))
    return found + [(f"model.{name}", target) for name, target in found]


# ---- blocks -----------------------------------------------------------------------------------------------------------

_UNET_BLOCK = re.compile(r"^(input|middle|output)_blocks?\.(\d+)\.")
_FLUX_BLOCK = re.compile(r"^(single_)?transformer_blocks\.(\d+)\.")


def find_blocks(modules: Collection[str]) -> dict[str, str]:
    """Module of a denoiser -> the block it lies in, as block weights call it (IN04, M00, D07, ...); none for those outside."""
    if any(name.startswith("single_transformer_blocks.") for name in modules):
        return {name: _flux_block(name) for name in modules}
    originals = original_unet_names(modules)
    found = {name: _UNET_BLOCK.match(original) for name, original in originals.items()}
    return {name: _unet_block(match[1], int(match[2])) for name, match in found.items() if match}


def _unet_block(where: str, number: int) -> str:
    return {"input": f"IN{number:02}", "middle": "M00", "output": f"OUT{number:02}"}[where]


def _flux_block(name: str) -> str:
    if found := _FLUX_BLOCK.match(name):
        return f"{'S' if found[1] else 'D'}{int(found[2]):02}"
    return "OUT" if name.startswith(("norm_out", "proj_out")) else "IN"
