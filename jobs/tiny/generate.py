"""Make pictures with the family: through diffusers' own pipeline, as any user would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.tiny import network

Text = tuple[CLIPTextModel, CLIPTokenizer]
Pipeline = StableDiffusionPipeline | StableDiffusionControlNetPipeline
STEPS, GUIDANCE = 20, 2.5
BATCH = 16


def assemble(unet: UNet2DConditionModel, vae: AutoencoderKL, text: Text, controlnet: ControlNetModel | None = None) -> Pipeline:
    """A pipeline of the given parts with the recipe's scheduler, without progress bars."""
    more = {"controlnet": controlnet} if controlnet else {}
    pipe = (StableDiffusionControlNetPipeline if controlnet else StableDiffusionPipeline)(
        vae=vae,
        text_encoder=text[0],
        tokenizer=text[1],
        unet=unet,
        scheduler=network.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_parts(out: Path) -> StableDiffusionPipeline:
    """The pipeline of a training folder."""
    text = (CLIPTextModel.from_pretrained(out / "text_encoder"), CLIPTokenizer.from_pretrained(out / "tokenizer"))
    unet = UNet2DConditionModel.from_pretrained(out / "unet")
    return assemble(unet, AutoencoderKL.from_pretrained(out / "vae"), text)


@torch.no_grad()
def generate(pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], **more: Any) -> list[Image.Image]:
    """One picture per prompt and seed; lists in `more` (images, say) are cut along."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        rest = {name: value[part] if isinstance(value, list) else value for name, value in more.items()}
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | rest
        images += pipe(prompt=list(prompts[part]), generator=noise, **settings).images
    return images
