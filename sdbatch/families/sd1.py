"""Stable Diffusion 1.x: one CLIP text encoder, a UNet that predicts noise, a VAE that shrinks eight times."""

from __future__ import annotations

from sdbatch.families.base import CHUNK_TOKENS, Component, Family
from sdbatch.families.samplers import SAMPLERS

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    components=(
        Component("unet", "diffusers", "UNet2DConditionModel", "model.diffusion_model."),
        Component("vae", "diffusers", "AutoencoderKL", "first_stage_model."),
        Component("text_encoder", "transformers", "CLIPTextModel", "cond_stage_model.transformer."),
    ),
    config="sd1",
    latent_channels=4,
    vae_scale=8,
    native_px=512,
    context_width=768,
    chunk_tokens=CHUNK_TOKENS,
    max_clip_skip=12,
    samplers=tuple(SAMPLERS),
    default_sampler="dpmpp_2m_karras",
)
