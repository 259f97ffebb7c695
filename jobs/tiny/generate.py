"""Make pictures with the family: through diffusers' own pipeline, as any user would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

STEPS, GUIDANCE = 20, 2.5
BATCH = 16


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, scheduler: Any
) -> StableDiffusionPipeline:
    """A pipeline of the given parts, without progress bars."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_parts(out: Path, unet: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """The pipeline of a training folder, with its averaged U-Net or the given one, on that one's device."""
    pipe = assemble(
        AutoencoderKL.from_pretrained(out / "vae").eval(),
        CLIPTextModel.from_pretrained(out / "text_encoder").eval(),
        CLIPTokenizer.from_pretrained(out / "tokenizer"),
        unet or UNet2DConditionModel.from_pretrained(out / "unet").eval(),
        DDIMScheduler.from_pretrained(out / "scheduler"),
    )
    return pipe.to(pipe.unet.device)


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], **more: Any) -> list[Image.Image]:
    """One picture per prompt and seed; lists in `more` (images, say) are cut along."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        rest = {name: value[part] if isinstance(value, list) else value for name, value in more.items()}
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | rest
        images += pipe(prompt=list(prompts[part]), generator=noise, **settings).images
    return images
