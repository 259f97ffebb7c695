"""The names that LoRA files give to the modules of a model, brought back to the model's own names.

kohya writes `lora_unet_down_blocks_0_..._to_q.lora_down.weight`, diffusers `unet.down_blocks.0....to_q.lora.down.weight`,
peft `unet.down_blocks.0....to_q.lora_A.weight`. With dots and underscores made the same, one look-up serves all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

ROLES: dict[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".diff": "diff",
}
"""How a key ends, and the role of its tensor. `.hada_*`, `.lokr_*` and the like are their own role."""

COMPONENTS: tuple[tuple[str, str], ...] = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("unet.base_model.model.", "unet"),
    ("text_encoder.base_model.model.", "text_encoder"),
    ("base_model.model.", "unet"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
)
"""How a key begins, and the component it belongs to; the first that fits is taken."""

_ROLE_PATTERN = re.compile("(" + "|".join(re.escape(end) for end in sorted(ROLES, key=len, reverse=True)) + ")$")
_OWN_ROLE = re.compile(
    r"\.(hada_\w+|lokr_\w+|dora_scale|oft_\w+|diff_b|on_input|[ab][12]|lora_magnitude_vector(?:\.default)?)(?:\.weight)?$"
)
_BLOCK_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor's name, or None for one that belongs to no adapter."""
    if found := _ROLE_PATTERN.search(key):
        return key[: found.start()], ROLES[found.group(1)]
    if found := _OWN_ROLE.search(key):
        role = "dora_scale" if found.group(1).startswith("lora_magnitude_vector") else found.group(1)
        return key[: found.start()], role
    return None


def group_by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors by module and role, and the names that belong to none."""
    groups: dict[str, dict[str, Tensor]] = {}
    others: list[str] = []
    for key, tensor in tensors.items():
        if (parts := split_key(key)) is None:
            others.append(key)
        else:
            groups.setdefault(parts[0], {})[parts[1]] = tensor
    return groups, others


def find_component(module: str) -> tuple[str, str]:
    """(component, flat name of the module in it)."""
    for prefix, component in COMPONENTS:
        if module.startswith(prefix):
            return component, _flat(module[len(prefix) :])
    return "unet", _flat(module)


def _flat(name: str) -> str:
    """A name with dots made underscores, without the wrappers that some writers put in between."""
    name = name.replace(".processor.", ".").replace(".", "_")
    name = re.sub(r"_to_out$", "_to_out_0", name)
    return name.removeprefix("text_model_")


def flat_names(modules: Iterable[str], layers_per_block: int | None = None) -> dict[str, str]:
    """Flat name -> the model's own name, for every module; for a UNet also under its name in the original code."""
    names = list(modules)
    table = {_flat(name): name for name in names}
    if layers_per_block is not None:
        upsamplers_after_attention = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.0$", name)}
        for name in names:
            if original := original_name(name, layers_per_block, upsamplers_after_attention):
                table.setdefault(_flat(original), name)
    return table


def original_name(name: str, layers: int, attention_up_blocks: set[str]) -> str | None:
    """The name that the original Stable Diffusion code gives to a module of diffusers' UNet, or None for none."""
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
            return None


def peft_alpha(metadata: Mapping[str, str], component: str, module: str) -> float | None:
    """The alpha that peft keeps in the file's metadata instead of a tensor, or None."""
    try:
        settings: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    patterns: dict[str, float] = settings.get(f"{component}.alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.search(rf"(^|\.){pattern}$", module):
            return float(alpha)
    alpha = settings.get(f"{component}.lora_alpha")
    return None if alpha is None else float(alpha)
