"""SDXL: two text encoders side by side, a UNet that is also told the prompt's summary and the picture's size."""

from __future__ import annotations

from sdbatch.families.base import Component, Encoder, Family
from sdbatch.families.samplers import NOISE_SAMPLERS

SDXL = Family(
    name="sdxl",
    title="SDXL",
    components=(
        Component("unet", "diffusers", "UNet2DConditionModel", ("model.diffusion_model.", "diffusion_model.", "unet.", "")),
        Component("vae", "diffusers", "AutoencoderKL", ("first_stage_model.", "vae.")),
        Component("text_encoder", "transformers", "CLIPTextModel", ("conditioner.embedders.0.transformer.",)),
        # The refiner has this one alone, in the first place.
        Component(
            "text_encoder_2",
            "transformers",
            "CLIPTextModelWithProjection",
            ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "text_encoders.clip_g.transformer."),
        ),
    ),
    # A1111 and ComfyUI take the last layer but one unless a deeper one is asked for.
    encoders=(
        Encoder("text_encoder", "tokenizer", layer=2, final_norm=False),
        Encoder("text_encoder_2", "tokenizer_2", layer=2, final_norm=False, pooled=True),
    ),
    config="sdxl",
    latent_channels=4,
    size_multiple_px=8,
    native_px=1024,
    context_width=2048,
    max_clip_skip=12,
    samplers=NOISE_SAMPLERS,
    default_sampler="dpmpp_2m_karras",
)
