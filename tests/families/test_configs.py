"""The weightless configs that ship with a family are the real architecture's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

import sdbatch.families
from sdbatch.adapters.read import read_json
from sdbatch.families import FAMILIES
from sdbatch.pipeline.assemble import load_tokenizer

CONFIGS = Path(sdbatch.families.__file__).parent / "configs"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_folder_is_whole_and_has_no_weights(name: str) -> None:
    folder = CONFIGS / FAMILIES[name].config
    index = read_json(folder / "model_index.json", name)
    for component in FAMILIES[name].components:
        assert index[component.name] == [component.library, component.cls]
        assert (folder / component.name / "config.json").is_file()
    assert not list(folder.rglob("*.safetensors"))


def test_sd1_has_the_parameters_of_the_published_model() -> None:
    folder = CONFIGS / "sd1"
    with torch.device("meta"):
        modules: list[Any] = [
            UNet2DConditionModel.from_config(read_json(folder / "unet/config.json", "unet")),
            AutoencoderKL.from_config(read_json(folder / "vae/config.json", "vae")),
            CLIPTextModel(CLIPTextConfig.from_dict(read_json(folder / "text_encoder/config.json", "text_encoder"))),
        ]
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_sd1_s_tokenizer_is_clip_s() -> None:
    tokenizer = load_tokenizer(CONFIGS / "sd1")
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 49407
