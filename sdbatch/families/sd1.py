"""Stable Diffusion 1.x: one CLIP text encoder, a UNet that predicts noise, a VAE that shrinks eight times."""

from __future__ import annotations

from sdbatch.families.base import Component, Encoder, Family
from sdbatch.families.samplers import NOISE_SAMPLERS

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    components=(
        Component("unet", "diffusers", "UNet2DConditionModel", ("model.diffusion_model.", "diffusion_model.", "unet.", "")),
        Component("vae", "diffusers", "AutoencoderKL", ("first_stage_model.", "vae.")),
        Component("text_encoder", "transformers", "CLIPTextModel", ("cond_stage_model.transformer.",)),
    ),
    encoders=(Encoder("text_encoder", "tokenizer"),),
    config="sd1",
    latent_channels=4,
    size_multiple_px=8,
    native_px=512,
    context_width=768,
    max_clip_skip=12,
    samplers=NOISE_SAMPLERS,
    default_sampler="dpmpp_2m_karras",
)
