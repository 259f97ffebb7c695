"""The U-Net: velocity prediction on cached latents, prompts from the frozen text encoder."""

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from jobs.tiny import emoji, latent, network, sample, scene, train_text
from jobs.tiny.diffusion import Diffusion, drop
from jobs.tiny.loop import Loop, LoopSettings


def train(config: dict[str, Any], out: Path) -> None:
    """Train the base. Side effects: writes `out`/unet (averaged)."""
    section = config["unet"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    nouns = emoji.load_nouns()
    scenes, latents = latent.load(config, out)
    diffusion = Diffusion(out, device, section["time_bias"])
    diffusion.text_encoder.requires_grad_(False)
    unet = network.begin(UNet2DConditionModel, out / "unet", network.build_unet).to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(unet.named_parameters()), out / "unet_run")
    groups = train_text.group_by_kind(scenes)

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = train_text.draw_scenes(groups, section["batch"])
        captions = [drop(scene.describe(scenes[i], nouns, random), section["caption_dropout"]) for i in chosen]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, latents[chosen], captions)

    def on_save() -> None:
        unet.save_pretrained(out / "unet")
        sample.show_base(out, "unet", diffusion, unet)

    loop.run(step, on_save)
