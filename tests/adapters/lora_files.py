"""LoRA files in every dialect, with what they must amount to computed by plain products."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Deltas = dict[str, dict[str, Tensor]]


@dataclass
class LoraFile:
    """The tensors of a file, and the change of each weight at strength 1: {component: {module: delta}}."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    deltas: Deltas = field(default_factory=Deltas)
    metadata: dict[str, str] = field(default_factory=dict[str, str])


def attention_layers(component: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in component.named_modules() if isinstance(m, nn.Linear) and "attn" in name}


def conv_layers(component: nn.Module) -> dict[str, nn.Module]:
    wanted = ("resnets", "samplers", "proj_in", "proj_out")
    return {name: m for name, m in component.named_modules() if isinstance(m, nn.Conv2d) and any(part in name for part in wanted)}


def pair(module: nn.Module, rank: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(down, up, up @ down) of a linear or convolutional layer."""
    weight: Any = module.weight
    down = 0.3 * torch.randn(rank, *weight.shape[1:], generator=random)
    up = 0.3 * torch.randn(weight.shape[0], rank, *([1] * (weight.dim() - 2)), generator=random)
    return down, up, (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def kohya(layers: Mapping[str, Mapping[str, nn.Module]], alphas: tuple[float, ...] = (2.0, 4.0, 1.0), seed: int = 0) -> LoraFile:
    """kohya's dialect; alpha and rank differ from layer to layer, as in resized files."""
    file, random = LoraFile(), torch.Generator().manual_seed(seed)
    for component, modules in layers.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        for index, (name, module) in enumerate(modules.items()):
            rank, alpha = 2 + index % 3, alphas[index % len(alphas)]
            down, up, product = pair(module, rank, random)
            key = prefix + name.replace(".", "_")
            file.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
            file.deltas.setdefault(component, {})[name] = product * alpha / rank
    return file


def renamed(source: LoraFile, layers: dict[str, dict[str, nn.Module]], ends: tuple[str, str], *, dotted_te: str = "") -> LoraFile:
    """The same LoRA in a dotted dialect (peft, diffusers), where alpha is folded into `up`."""
    file = LoraFile(deltas=source.deltas)
    for component, modules in layers.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        for name in modules:
            key = prefix + name.replace(".", "_")
            down, up = source.tensors[f"{key}.lora_down.weight"], source.tensors[f"{key}.lora_up.weight"]
            scale = float(source.tensors[f"{key}.alpha"]) / down.shape[0]
            path = f"{component}.{dotted_te if component != 'unet' else ''}{name}"
            file.tensors |= {path + ends[0]: down, path + ends[1]: up * scale}
    return file


def peft_with_metadata(modules: dict[str, nn.Module]) -> LoraFile:
    """peft's dialect with alpha only in the file's metadata, as `save_lora_weights` writes it."""
    file, random = LoraFile(), torch.Generator().manual_seed(1)
    special = next(iter(modules))
    for name, module in modules.items():
        down, up, product = pair(module, 4, random)
        file.tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        file.deltas.setdefault("unet", {})[name] = product * (16 if name == special else 2) / 4
    settings = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {special: 16}}
    file.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    return file


def loha(modules: dict[str, nn.Module]) -> LoraFile:
    file, random = LoraFile(), torch.Generator().manual_seed(2)
    for name, module in modules.items():
        weight: Any = module.weight
        rows, columns = weight.shape[0], weight[0].numel()
        a1, b1, a2, b2 = (torch.randn(shape, generator=random) for shape in ((rows, 3), (3, columns), (rows, 3), (3, columns)))
        key = "lora_unet_" + name.replace(".", "_")
        parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.5)}
        file.tensors |= {f"{key}.{role}": tensor * (0.2 if role != "alpha" else 1) for role, tensor in parts.items()}
        file.deltas.setdefault("unet", {})[name] = ((0.04 * a1 @ b1) * (0.04 * a2 @ b2) * 1.5 / 3).reshape(weight.shape)
    return file


def lokr(modules: dict[str, nn.Module], *, low_rank: bool) -> LoraFile:
    file, random = LoraFile(), torch.Generator().manual_seed(3)
    for name, module in modules.items():
        weight: Any = module.weight
        rows, columns = weight.shape[0] // 4, weight.shape[1] // 4
        first = 0.3 * torch.randn(4, 4, generator=random)
        a, b = 0.3 * torch.randn(rows, 2, generator=random), 0.3 * torch.randn(2, columns, generator=random)
        key = "lora_unet_" + name.replace(".", "_")
        file.tensors |= {f"{key}.lokr_w1": first, f"{key}.alpha": torch.tensor(3.0)}
        file.tensors |= {f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b} if low_rank else {f"{key}.lokr_w2": a @ b}
        file.deltas.setdefault("unet", {})[name] = torch.kron(first, a @ b) * (3.0 / 2 if low_rank else 1.0)
    return file
