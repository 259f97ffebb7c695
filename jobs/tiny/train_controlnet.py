"""A ControlNet that follows canny edges, taught on pictures in poses their captions do not tell."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from jobs.tiny import edge, emoji, latent, network, picture, sample, scene
from jobs.tiny.diffusion import Diffusion, drop
from jobs.tiny.loop import Loop, LoopSettings

EMBEDDING_WIDTHS = (8, 16, 24, 32)  # four, so that the condition shrinks eight times, as SD 1.x's does
# How many pictures of a noun by their size; the base knows one pose only, so most of them stand elsewhere.
SIZES = {"plain": 2, "shifted": 6, "small": 4}
COLOURED_SHARE = 0.3
SHOWN_POSE = 3  # of each noun: smaller, mirrored and somewhere else
MARGIN_CELLS = {"shifted": 4, "small": 8}


@dataclass(frozen=True)
class Pose:
    """A scene, and whether it is seen in a mirror."""

    item: scene.Scene
    mirrored: bool

    def draw(self, pictures: np.ndarray) -> np.ndarray:
        """Shapes: as `scene.draw`."""
        rgb = scene.draw(self.item, pictures)
        return rgb[:, ::-1] if self.mirrored else rgb


def list_poses(nouns: list[emoji.Noun], seed: int) -> list[Pose]:
    """Every noun in place and mirrored, then in random places, mirrored or not, some of them in other colours."""
    rng = random.Random(seed)
    poses = []
    for index, noun in enumerate(nouns):
        tints, backgrounds = scene.allowed(noun)
        for kind, count in SIZES.items():
            for number in range(count):
                margin = MARGIN_CELLS.get(kind)
                cell = (rng.randint(0, margin), rng.randint(0, margin)) if margin else None
                coloured = bool(margin) and rng.random() < COLOURED_SHARE
                tint = rng.choice([None, *tints]) if coloured else None
                background = rng.choice([None, *backgrounds]) if coloured else None
                item = scene.Scene(index, kind, tint, background, cell)
                poses.append(Pose(item, number % 2 == 1))
    return poses


def to_caption(item: scene.Scene, nouns: list[emoji.Noun]) -> str:
    """What it is and its colours: where it stands must be read from the edges."""
    return scene.describe(scene.Scene(item.noun, "plain", item.tint, item.background), nouns, random)


def build(unet: UNet2DConditionModel) -> ControlNetModel:
    """A copy of the U-Net's first half."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING_WIDTHS)


def train(config: dict[str, Any], out: Path) -> None:
    """Side effects: writes `out`/controlnet."""
    section = config["controlnet"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    nouns, pictures = emoji.load_nouns(), emoji.load_pictures(out, network.SIZE_PX)["noto"]
    poses = list_poses(nouns, section["seed"])
    drawn = [np.ascontiguousarray(pose.draw(pictures)) for pose in poses]
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    latents = latent.encode(vae, drawn)
    edges = torch.from_numpy(np.stack([edge.canny(rgb) for rgb in drawn]))
    diffusion = Diffusion(out, device, section["time_bias"])
    unet = UNet2DConditionModel.from_pretrained(out / "unet").to(device).requires_grad_(False)
    controlnet = network.begin(ControlNetModel, out / "controlnet", lambda: build(unet)).to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(controlnet.named_parameters()), out / "controlnet_run")

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = [random.randrange(len(poses)) for _ in range(section["batch"])]
        captions = [drop(to_caption(poses[index].item, nouns), section["caption_dropout"]) for index in chosen]
        condition = edges[chosen, None].float().expand(-1, 3, -1, -1).to(device)

        def predict(noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            down, mid = controlnet(noisy, times, hidden, controlnet_cond=condition, return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return unet(noisy, times, hidden, **more).sample

        return diffusion.loss(predict, latents[chosen], captions)

    def on_save() -> None:
        controlnet.save_pretrained(out / "controlnet")
        shown = [index * sum(SIZES.values()) + SHOWN_POSE for index in sample.spread(nouns)]
        prompts = [to_caption(poses[index].item, nouns) for index in shown]
        conditions = [picture.to_image(edge.to_condition(drawn[index])) for index in shown]
        sample.show(out, "controlnet", diffusion, unet, prompts, controlnet, image=conditions)

    loop.run(step, on_save)
