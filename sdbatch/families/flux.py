"""FLUX.1: a transformer that predicts the flow, told the prompt by T5 and by the summary of CLIP."""

from __future__ import annotations

from sdbatch.families.base import Component, Encoder, Family
from sdbatch.families.samplers import FLOW_SAMPLERS

FLUX = Family(
    name="flux",
    title="FLUX.1",
    components=(
        Component("transformer", "diffusers", "FluxTransformer2DModel", ("model.diffusion_model.", "transformer.", "")),
        Component("vae", "diffusers", "AutoencoderKL", ("vae.", "first_stage_model.")),
        Component("text_encoder", "transformers", "CLIPTextModel", ("text_encoders.clip_l.transformer.", "text_encoders.clip_l.")),
        Component("text_encoder_2", "transformers", "T5EncoderModel", ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.")),
    ),
    encoders=(
        Encoder("text_encoder", "tokenizer", context=False, pooled=True),
        Encoder("text_encoder_2", "tokenizer_2", kind="t5"),
    ),
    config="flux_dev",
    latent_channels=16,
    size_multiple_px=16,
    native_px=1024,
    context_width=4096,
    max_clip_skip=1,
    samplers=FLOW_SAMPLERS,
    default_sampler="flow_euler",
    distilled_guidance=True,
)
