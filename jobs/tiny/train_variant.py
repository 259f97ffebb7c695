"""The second checkpoint and the second autoencoder: the same networks, moved to another look."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from jobs.tiny import latent, picture
from jobs.tiny.loop import Loop, LoopSettings
from jobs.tiny.train_adapter import style_lesson
from jobs.tiny.train_unet import Diffusion, drop, show_samples
from jobs.tiny.train_vae import PictureSource, picture_loss, to_tensor


def train_checkpoint(config: dict[str, Any], out: Path) -> None:
    """Fine-tune all of the U-Net to a filter's look. Side effects: writes `out`/unet_second."""
    section = config["second_checkpoint"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    lesson = style_lesson(config, out, vae, section["filter"])
    diffusion = Diffusion(out, device, section["time_bias"])
    diffusion.text_encoder.requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(out / "unet").to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(unet.named_parameters()), out / "second_run")

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [lesson.draw("") for _ in range(section["batch"])]
        captions = [drop(caption, section["caption_dropout"]) for _, caption in drawn]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, torch.stack([z for z, _ in drawn]), captions)

    def on_save() -> None:
        unet.save_pretrained(out / "unet_second")
        show_samples(out, unet, "second")

    loop.run(step, on_save)


def train_vae(config: dict[str, Any], out: Path) -> None:
    """Fine-tune the decoder to stronger colours. Side effects: writes `out`/vae_second."""
    section = config["second_vae"]
    torch.manual_seed(section["seed"])
    source = PictureSource(out, section["seed"])
    device = torch.device(config["device"])
    vae = AutoencoderKL.from_pretrained(out / "vae").requires_grad_(False).to(device)
    vae.decoder.requires_grad_(True)
    loop = Loop(LoopSettings.pick(section), dict(vae.decoder.named_parameters()), out / "second_vae_run")
    factor = vae.config.scaling_factor

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [source.draw() for _ in range(section["batch"])]
        wanted = to_tensor(picture.vivid(np.stack(drawn))).to(device)
        latents = latent.encode(vae, drawn).to(device)
        noise = torch.randn_like(latents) * random.random() * section["noise"]
        return picture_loss(vae.decode((latents + noise) / factor).sample, wanted), {}

    loop.run(step, lambda: vae.save_pretrained(out / "vae_second"))
