"""Full-size checkpoints with random weights, written once: a single file under the original names, in float16 or float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdbatch.cell import Recipe, WeightFile
from sdbatch.families import FAMILIES
from sdbatch.pipeline.assemble import BUILDERS
from sdbatch.pipeline.configs import Configs
from tests.pipeline.models import original_unet, original_vae
from tests.pipeline.zoo import openclip

CONFIGS = Path(__file__).parents[2] / "sdbatch/families/configs"


def write_checkpoint(name: str, folder: Path, stored: torch.dtype, dtype: str = "auto") -> Recipe:
    """A random checkpoint of `sd1`, `sd2` or `sdxl`, unless it is there already; the recipe loads it as `dtype`."""
    path = folder / f"{name}_{str(stored).removeprefix('torch.')}.safetensors"
    recipe = Recipe(name, str(CONFIGS / name), WeightFile(path.stem, str(path), path.stem), dtype=dtype)
    if not path.is_file():
        configs = Configs(recipe, FAMILIES[name])
        tensors: dict[str, Tensor] = {}
        for part in configs.components():
            with torch.device("meta"):
                module = BUILDERS[part.cls](configs.component(part))
            tensors |= _fill(_original(part.name, part.prefixes[0], module), stored)
        save_file(tensors, path)
    return recipe


def _original(component: str, prefix: str, module: Any) -> dict[str, Tensor]:
    if component == "unet":
        named = original_unet(module)
    elif component == "vae":
        named = original_vae(module)
    elif "transformer" in prefix:
        named = {f"text_model.{key}": tensor for key, tensor in module.state_dict().items()}
    else:
        return openclip(module, prefix)
    return {prefix + key: tensor for key, tensor in named.items()}


def _fill(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random values strong enough to make a picture, one tensor after the other."""
    random = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        scale = (1.0 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.02
        values = torch.empty(tensor.shape, dtype=dtype).normal_(generator=random).mul_(scale)
        found[key] = values + 1 if tensor.dim() == 1 and key.endswith("weight") else values
    return found
