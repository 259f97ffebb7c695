"""Stable Diffusion 2.x: OpenCLIP's text encoder without its last layer, a UNet that predicts noise or velocity."""

from __future__ import annotations

from sdbatch.families.base import Component, Encoder, Family
from sdbatch.families.samplers import NOISE_SAMPLERS

SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    components=(
        Component("unet", "diffusers", "UNet2DConditionModel", ("model.diffusion_model.", "diffusion_model.", "unet.", "")),
        Component("vae", "diffusers", "AutoencoderKL", ("first_stage_model.", "vae.")),
        Component("text_encoder", "transformers", "CLIPTextModel", ("cond_stage_model.model.", "cond_stage_model.transformer.")),
    ),
    # The last one here is the penultimate one of OpenCLIP's 24, which A1111 and ComfyUI take at clip_skip 1 and 2 alike.
    encoders=(Encoder("text_encoder", "tokenizer", left_out=1),),
    config="sd2",
    latent_channels=4,
    size_multiple_px=8,
    native_px=512,
    context_width=1024,
    max_clip_skip=24,
    samplers=NOISE_SAMPLERS,
    default_sampler="dpmpp_2m_karras",
)
