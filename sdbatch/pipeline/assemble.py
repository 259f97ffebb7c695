"""From a recipe to modules in memory: reads weights without the network, checks that they are whole, keeps what is equal.

A checkpoint is a single file with the keys of the original Stable Diffusion code, or a diffusers folder. The configs
come from the recipe's config folder, which holds no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from sdbatch.adapters.module import build_module
from sdbatch.adapters.read import Tensors, read_json, read_tensors
from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.families import Family, find_family

_FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
_OLD_VAE_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""How diffusers named the VAE's attention before 2023; folders of that time are still about."""

_CLIP_EXTRAS = ("text_projection", "logit_scale", "vision_model", "visual")
"""Parts of a whole CLIP that a bare text encoder has no use for."""


@dataclass(slots=True)
class CheckpointReader:
    """The tensors of a checkpoint by component, the file opened once."""

    file: WeightFile
    family: Family
    _tensors: Tensors | None = None

    def component(self, name: str) -> Tensors:
        """The tensors of one component, under the file's own names for them."""
        path = Path(self.file.path)
        if path.is_dir():
            return _read_folder(self.file, path / name)
        if self._tensors is None:
            self._tensors = read_tensors(self.file).tensors
        prefix = self.family.component(name).prefix
        if not any(key.startswith(prefix) for key in self._tensors):
            shown = ", ".join(list(self._tensors)[:3])
            raise WeightFileError(
                f"checkpoint.{self.file.name}: it has no {name} ({prefix}...); it holds {shown}, ... "
                f"Choose a whole {self.family.title} checkpoint."
            )
        return {key: tensor for key, tensor in self._tensors.items() if key.startswith(prefix)}


def open_checkpoint(recipe: Recipe) -> CheckpointReader:
    """What reads the weights of a recipe's checkpoint: the one place that decides it."""
    return CheckpointReader(recipe.checkpoint, find_family(recipe.family))


def _read_folder(file: WeightFile, folder: Path) -> Tensors:
    if index := next(iter(sorted(folder.glob("*.safetensors.index.json"))), None):
        names = sorted(set(read_json(index, file.name)["weight_map"].values()))
        parts = [read_tensors(WeightFile(file.name, str(folder / Path(name).name), file.sha256)).tensors for name in names]
        return {key: tensor for part in parts for key, tensor in part.items()}
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return read_tensors(WeightFile(file.name, str(folder / name), file.sha256)).tensors
    raise WeightFileError(f"{file.name}: {folder} holds no weights. It must have one of {', '.join(_FOLDER_FILES[:4])}.")


def load_unet(reader: CheckpointReader, config_folder: Path, dtype: torch.dtype) -> nn.Module:
    """The UNet of a checkpoint."""
    config = _read_config(config_folder / "unet" / "config.json", "UNet2DConditionModel")
    state = reader.component("unet")
    if any(key.startswith("model.diffusion_model.") for key in state):
        state = convert_ldm_unet_checkpoint(state, config)
    return build_module(f"checkpoint.{reader.file.name} (unet)", UNet2DConditionModel.from_config, config, state, dtype)


def load_vae(state: Tensors, what: str, config_folder: Path, dtype: torch.dtype) -> nn.Module:
    """A VAE from diffusers' keys or the original ones, with or without a prefix."""
    config = _read_config(config_folder / "vae" / "config.json", "AutoencoderKL")
    if not any("down_blocks" in key for key in state):
        state = convert_ldm_vae_checkpoint(state, config)
    for old, new in _OLD_VAE_NAMES:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return build_module(what, AutoencoderKL.from_config, config, state, dtype)


def load_text_encoder(state: Tensors, what: str, config_folder: Path, dtype: torch.dtype) -> nn.Module:
    """A CLIP text encoder from any of the prefixes that its keys come with."""
    config = read_json(config_folder / "text_encoder" / "config.json", "text_encoder")
    prefixes = ("cond_stage_model.transformer.", "text_encoder.", "text_model.")
    for prefix in prefixes:
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_CLIP_EXTRAS)}
    return build_module(what, CLIPTextModel, CLIPTextConfig.from_dict(config), state, dtype)


def load_tokenizer(config_folder: Path) -> Any:
    """The tokenizer of the config folder."""
    folder = config_folder / "tokenizer"
    if not folder.is_dir():
        raise WeightFileError(f"model: {folder} is not there; the config folder needs the tokenizer's files.")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def read_scheduler_config(recipe: Recipe) -> dict[str, Any]:
    """The model's noise levels and what it predicts, the recipe's prediction type over the folder's."""
    config = read_json(Path(recipe.config) / "scheduler" / "scheduler_config.json", "scheduler")
    if recipe.prediction_type is not None:
        config["prediction_type"] = recipe.prediction_type
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_component_state(reader: CheckpointReader, other: WeightFile | None, name: str) -> tuple[Tensors, str]:
    """The tensors of a component from the file that replaces it, else from the checkpoint; and what to call them."""
    if other is None:
        return reader.component(name), f"checkpoint.{reader.file.name} ({name})"
    path = Path(other.path)
    if path.is_dir():
        folder = path / name if (path / name).is_dir() else path
        return _read_folder(other, folder), f"{name}.{other.name}"
    return read_tensors(other).tensors, f"{name}.{other.name}"


def _read_config(path: Path, cls: str) -> dict[str, Any]:
    config = read_json(path, "model")
    if (found := config.get("_class_name", cls)) != cls:
        raise WeightFileError(f"model: {path} is the config of {found}, this family needs {cls}.")
    return config
