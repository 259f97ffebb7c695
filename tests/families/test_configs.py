"""The weightless configs that ship with sdbatch describe the architectures they are named for."""

from __future__ import annotations

from typing import Any

import pytest

from sdbatch.plan.files import find_config

PARAMETERS_M = {"unet": 859.520964, "vae": 83.653863, "text_encoder": 123.060480}
"""Of Stable Diffusion 1.x, in millions."""


@pytest.mark.parametrize("part", PARAMETERS_M)
def test_sd1_has_the_parameters_of_stable_diffusion_1(part: str) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = find_config("sd1") / part
    builders: dict[str, Any] = {
        "unet": lambda: UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder)),
        "vae": lambda: AutoencoderKL.from_config(AutoencoderKL.load_config(folder)),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(folder)),
    }
    with torch.device("meta"):
        module = builders[part]()
    assert sum(parameter.numel() for parameter in module.parameters()) / 1e6 == pytest.approx(PARAMETERS_M[part])


def test_sd1_tokenizes_as_clip_does() -> None:
    from transformers import CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(find_config("sd1") / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer) == 49408
