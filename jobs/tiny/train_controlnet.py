"""A ControlNet that follows canny edges, taught on plain, mirrored, smaller and shifted pictures."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from jobs.tiny import edge, emoji, latent, network, scene
from jobs.tiny.loop import Loop, LoopSettings
from jobs.tiny.train_unet import Diffusion, drop

EMBEDDING_WIDTHS = (8, 16, 24, 32)  # four, so that the condition shrinks eight times, as SD 1.x's does


def list_scenes(nouns: list[emoji.Noun], seed: int) -> list[scene.Scene]:
    """Pictures whose outline the caption does not tell."""
    rng = random.Random(seed)
    scenes = []
    for index in range(len(nouns)):
        scenes += [scene.Scene(index), scene.Scene(index, "mirrored")]
        scenes += [scene.Scene(index, "shifted", cell_xy=(rng.randint(0, 4), rng.randint(0, 4))) for _ in range(3)]
        scenes += [scene.Scene(index, "small", cell_xy=(rng.randint(0, 8), rng.randint(0, 8))) for _ in range(2)]
    return scenes


def to_caption(item: scene.Scene, nouns: list[emoji.Noun]) -> str:
    """Only what it is: where it stands must be read from the edges."""
    return scene.describe(scene.Scene(item.noun), nouns, random)


def build(unet: UNet2DConditionModel) -> ControlNetModel:
    """A copy of the U-Net's first half."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING_WIDTHS)


def train(config: dict[str, Any], out: Path) -> None:
    """Side effects: writes `out`/controlnet."""
    section = config["controlnet"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    nouns, pictures = emoji.load_nouns(), emoji.load_pictures(out, network.SIZE_PX)["noto"]
    scenes = list_scenes(nouns, section["seed"])
    drawn = [scene.draw(item, pictures) for item in scenes]
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    latents = latent.encode(vae, drawn)
    edges = torch.from_numpy(np.stack([edge.canny(rgb) for rgb in drawn]))
    diffusion = Diffusion(out, device, section["time_bias"])
    unet = UNet2DConditionModel.from_pretrained(out / "unet").to(device).requires_grad_(False)
    controlnet = build(unet).to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(controlnet.named_parameters()), out / "controlnet_run")

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = [random.randrange(len(scenes)) for _ in range(section["batch"])]
        captions = [drop(to_caption(scenes[index], nouns), section["caption_dropout"]) for index in chosen]
        condition = edges[chosen, None].float().expand(-1, 3, -1, -1).to(device)

        def predict(noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            down, mid = controlnet(noisy, times, hidden, controlnet_cond=condition, return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return unet(noisy, times, hidden, **more).sample

        return diffusion.loss(predict, latents[chosen], captions)

    loop.run(step, lambda: controlnet.save_pretrained(out / "controlnet"))
