"""The weightless configs that ship with a family are the real architecture's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdbatch.families
from sdbatch.cell import Recipe, WeightFile
from sdbatch.families import FAMILIES
from sdbatch.pipeline.assemble import BUILDERS, load_tokenizer
from sdbatch.pipeline.configs import Configs

CONFIGS = Path(sdbatch.families.__file__).parent / "configs"

VAE, VAE_OF_16, CLIP_L, OPENCLIP_H, OPENCLIP_G, T5 = 83_653_863, 83_819_683, 123_060_480, 340_387_840, 694_659_840, 4_762_310_656

PARAMETERS = {
    "sd1": ("sd1", {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L}),
    "sd2": ("sd2", {"unet": 865_910_724, "vae": VAE, "text_encoder": OPENCLIP_H}),
    "sd2_768": ("sd2", {"unet": 865_910_724, "vae": VAE, "text_encoder": OPENCLIP_H}),
    "sdxl": ("sdxl", {"unet": 2_567_463_684, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_G}),
    "sdxl_refiner": ("sdxl", {"unet": 2_259_526_660, "vae": VAE, "text_encoder_2": OPENCLIP_G}),
    "flux_dev": ("flux", {"transformer": 11_901_408_320, "vae": VAE_OF_16, "text_encoder": CLIP_L, "text_encoder_2": T5}),
    "flux_schnell": ("flux", {"transformer": 11_891_178_560, "vae": VAE_OF_16, "text_encoder": CLIP_L, "text_encoder_2": T5}),
}
"""Config folder -> its family and the parameters of the published model's components."""


def configs_of(name: str) -> tuple[Recipe, Configs]:
    family = FAMILIES[PARAMETERS[name][0]]
    recipe = Recipe(family.name, str(CONFIGS / name), WeightFile("none", str(CONFIGS / "none.safetensors"), "0"))
    return recipe, Configs(recipe, family)


def test_every_folder_is_listed_here() -> None:
    assert set(PARAMETERS) == {folder.name for folder in CONFIGS.iterdir()}
    assert {family.config for family in FAMILIES.values()} <= set(PARAMETERS)
    assert not list(CONFIGS.rglob("*.safetensors"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_those_of_the_published_model(name: str) -> None:
    _, configs = configs_of(name)
    counts: dict[str, int] = {}
    for part in configs.components():
        with torch.device("meta"):
            module = BUILDERS[part.cls](configs.component(part))
        counts[part.name] = sum(parameter.numel() for parameter in module.parameters())
    assert counts == PARAMETERS[name][1]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_numbers_in_the_table_are_the_configs(name: str) -> None:
    _, configs = configs_of(name)
    family = configs.family
    parts = {part.name: configs.component(part) for part in configs.components()}
    assert parts["vae"]["latent_channels"] == family.latent_channels
    width = parts[family.denoiser].get("cross_attention_dim") or parts[family.denoiser]["joint_attention_dim"]
    assert width == (1280 if name == "sdxl_refiner" else family.context_width)


@pytest.mark.parametrize(
    ("name", "tokenizer", "pad"),
    [
        ("sd1", "tokenizer", 49407),
        ("sd2", "tokenizer", 0),
        ("sdxl", "tokenizer", 49407),
        ("sdxl", "tokenizer_2", 0),
        ("flux_dev", "tokenizer", 49407),
    ],
)
def test_clip_s_vocabulary_serves_every_family(name: str, tokenizer: str, pad: int) -> None:
    recipe, configs = configs_of(name)
    encoder = next(encoder for encoder in configs.family.encoders if encoder.tokenizer == tokenizer)
    loaded = load_tokenizer(encoder, recipe, configs)
    assert len(loaded) == 49408
    assert loaded("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert loaded.pad_token_id == pad


@pytest.mark.parametrize("name", ["flux_dev", "flux_schnell"])
def test_t5_s_vocabulary_ships_too(name: str) -> None:
    recipe, configs = configs_of(name)
    loaded = load_tokenizer(configs.family.encoders[1], recipe, configs)
    assert loaded("a photo of a cat")["input_ids"] == [3, 9, 1202, 13, 3, 9, 1712, 1]
    # Compatibility forms, runs of spaces and what T5 never saw, as sentencepiece reads them.
    assert loaded("\ufb01ne \u2460  two\ncity \u6f22")["input_ids"] == [1399, 209, 192, 690, 3, 2, 1]
    assert (len(loaded), loaded.eos_token_id, loaded.pad_token_id) == (32100, 1, 0)
