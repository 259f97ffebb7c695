"""From a recipe to modules in memory: reads weights without the network, checks that they are whole.

`open_checkpoint` is the one place that decides what a recipe's weights are read from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from sdbatch.adapters.module import build_module
from sdbatch.adapters.read import read_json
from sdbatch.cell import Recipe
from sdbatch.errors import WeightFileError
from sdbatch.families import Component, Encoder
from sdbatch.families.t5 import find_t5_tokenizer
from sdbatch.pipeline.checkpoint import Checkpoint, FileCheckpoint, FolderCheckpoint, read_replacement
from sdbatch.pipeline.configs import CLIP_VOCABULARY, Configs, adapt
from sdbatch.pipeline.merged import MergedCheckpoint

BUILDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "UNet2DConditionModel": UNet2DConditionModel.from_config,
    "FluxTransformer2DModel": FluxTransformer2DModel.from_config,
    "AutoencoderKL": AutoencoderKL.from_config,
    "CLIPTextModel": lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)),
    "CLIPTextModelWithProjection": lambda config: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config)),
    "T5EncoderModel": lambda config: T5EncoderModel(T5Config.from_dict(config)),
}
"""Class of a component -> what makes the module from its config."""


def open_checkpoint(recipe: Recipe, configs: Configs) -> Checkpoint:
    """What the weights of a recipe's checkpoint are read from."""
    if recipe.merge is not None:
        return MergedCheckpoint(recipe, configs)
    if Path(recipe.checkpoint.path).is_dir():
        return FolderCheckpoint(recipe, configs)
    return FileCheckpoint(recipe, configs)


def load_component(part: Component, recipe: Recipe, checkpoint: Checkpoint, configs: Configs, dtype: torch.dtype) -> nn.Module:
    """A component from the file that replaces it, else from the checkpoint.

    Raises:
        WeightFileError: missing, incomplete, or of another architecture.
    """
    other = recipe.part(part.name)
    if other is None:
        state, what = checkpoint.component(part), f"{checkpoint.label} ({part.name})"
    else:
        state, what = read_replacement(other, part, configs), f"{part.name}.{other.name}"
    config = adapt(configs.component(part), part, state, what)
    return build_module(what, BUILDERS[part.cls], config, state, dtype)


def load_tokenizer(encoder: Encoder, recipe: Recipe, configs: Configs) -> Any:
    """The tokenizer of a text encoder: the model's own, else the vocabulary that ships with sdbatch.

    Raises:
        WeightFileError: the config folder knows no such tokenizer.
    """
    if encoder.kind == "t5":
        return T5Tokenizer.from_pretrained(str(find_t5_tokenizer(recipe)), local_files_only=True)
    folder = configs.find(encoder.tokenizer)
    if folder is None:
        raise WeightFileError(f"family.config: {configs.folders[-1]} has no {encoder.tokenizer}; it needs the tokenizer's files.")
    has_own = (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()
    if has_own and not folder.samefile(CLIP_VOCABULARY):
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return _load_clip_vocabulary(read_json(folder / "tokenizer_config.json", "family.config")["pad_token"])


@lru_cache(maxsize=4)
def _load_clip_vocabulary(pad_token: str) -> CLIPTokenizer:
    """Read once in a process, as libraries are: it takes as long as all modules of a model together."""
    return CLIPTokenizer.from_pretrained(str(CLIP_VOCABULARY), local_files_only=True, pad_token=pad_token)


def read_scheduler_config(recipe: Recipe, checkpoint: Checkpoint, configs: Configs) -> dict[str, Any]:
    """The model's noise levels and what it predicts: by the recipe, else by the checkpoint's header, else by its config."""
    config = configs.scheduler()
    said = checkpoint.prediction()
    predicts = recipe.prediction_type or said.type
    if predicts in ("epsilon", "v_prediction"):
        config["prediction_type"] = predicts
    if said.zero_snr if recipe.zero_snr is None else recipe.zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif recipe.zero_snr is False:
        config["rescale_betas_zero_snr"] = False
    return config
