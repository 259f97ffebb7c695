"""The second checkpoint: the base's U-Net, moved to another look."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from jobs.tiny import network, sample
from jobs.tiny.diffusion import Diffusion, drop
from jobs.tiny.loop import Loop, LoopSettings
from jobs.tiny.train_adapter import style_lesson


def train(config: dict[str, Any], out: Path) -> None:
    """Fine-tune all of the U-Net to a filter's look. Side effects: writes `out`/unet_second."""
    section = config["second_checkpoint"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    lesson = style_lesson(config, out, vae, section["filter"])
    diffusion = Diffusion(out, device, section["time_bias"])
    diffusion.text_encoder.requires_grad_(False)
    base = out / "unet"
    unet = network.begin(UNet2DConditionModel, out / "unet_second", lambda: UNet2DConditionModel.from_pretrained(base))
    unet.to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(unet.named_parameters()), out / "second_run")

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [lesson.draw("") for _ in range(section["batch"])]
        captions = [drop(caption, section["caption_dropout"]) for _, caption in drawn]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, torch.stack([z for z, _ in drawn]), captions)

    def on_save() -> None:
        unet.save_pretrained(out / "unet_second")
        sample.show_base(out, "second_checkpoint", diffusion, unet)

    loop.run(step, on_save)
