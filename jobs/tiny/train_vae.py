"""Autoencoder: first crops, then whole pictures."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from jobs.tiny import emoji, network, picture, scene, sheet
from jobs.tiny.loop import Loop, LoopSettings

SET_SHARES = {"noto": 0.6, "fluent_flat": 0.2, "noto_v1": 0.2}
FILTER_SHARE = 0.12
CROP_SHARE = 0.65  # of the run; four times as many steps for the same time


class PictureSource:
    """Draws random training pictures from all emoji sets."""

    def __init__(self, out: Path, seed: int) -> None:
        self.pictures = emoji.load_pictures(out, network.SIZE_PX)
        nouns = emoji.load_nouns()
        self.scenes: dict[str, list[scene.Scene]] = {}
        for item in scene.list_scenes(nouns, both_per_noun=16, pairs_per_noun=8, seed=seed):
            self.scenes.setdefault(item.kind, []).append(item)
        self.kinds = list(scene.SHARES)

    def draw(self) -> np.ndarray:
        """One picture, float [128, 128, 3]."""
        kind = random.choices(self.kinds, list(scene.SHARES.values()))[0]
        name = random.choices(list(SET_SHARES), list(SET_SHARES.values()))[0]
        rgb = scene.draw(random.choice(self.scenes[kind]), self.pictures[name])
        if random.random() < FILTER_SHARE:
            rgb = random.choice(list(picture.FILTERS.values()))(rgb)
        return rgb

    def draw_crop(self, size_px: int) -> np.ndarray:
        """A busy part of a picture, cut at latent cells."""
        rgb = self.draw()
        cells = (network.SIZE_PX - size_px) // picture.CELL_PX
        for _ in range(4):
            y, x = (random.randint(0, cells) * picture.CELL_PX for _ in range(2))
            crop = rgb[y : y + size_px, x : x + size_px]
            if crop.std((0, 1)).max() > 0.08:
                break
        return crop

    def batch(self, count: int, size_px: int) -> torch.Tensor:
        """Shapes: [count, 3, size, size] in -1..1."""
        draw = self.draw if size_px == network.SIZE_PX else lambda: self.draw_crop(size_px)
        return to_tensor(np.stack([draw() for _ in range(count)]))


def to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Float pictures [n, h, w, 3] in 0..1 → [n, 3, h, w] in -1..1."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float().contiguous() * 2 - 1


def edge_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the neighbour differences: keeps outlines sharp."""
    across = torch.diff(found, dim=-1) - torch.diff(wanted, dim=-1)
    down = torch.diff(found, dim=-2) - torch.diff(wanted, dim=-2)
    return across.abs().mean() + down.abs().mean()


def picture_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute + squared + outline difference."""
    difference = found - wanted
    return difference.abs().mean() + 0.5 * difference.square().mean() + 0.5 * edge_loss(found, wanted)


def psnr_db(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in -1..1, in dB."""
    return -10 * torch.log10((found.clamp(-1, 1) - wanted).square().mean((1, 2, 3)) / 4)


def show_reconstruction(
    vae: AutoencoderKL, source: PictureSource, path: Path, look: Callable[[np.ndarray], np.ndarray] = lambda rgb: rgb
) -> float:
    """Write a sheet of what is wanted over what is decoded. Returns the mean PSNR of the base set on white."""
    pictures = np.stack([picture.compose(rgba) for rgba in source.pictures["noto"]])
    given, wanted = to_tensor(pictures).to(vae.device), to_tensor(look(pictures)).to(vae.device)
    with torch.no_grad():
        found = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in given.split(16)])
    value = psnr_db(found, wanted).mean().item()
    rows = [row for start in range(0, 48, 16) for row in (wanted[start : start + 16], found[start : start + 16])]
    sheet.save_tensors(torch.cat(rows), path, columns=16)
    return value


def train(config: dict[str, Any], out: Path) -> None:
    """Train encoder and decoder together. Side effects: writes `out`/vae."""
    section = config["vae"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    source, vae = PictureSource(out, section["seed"]), network.begin(AutoencoderKL, out / "vae_raw", network.build_vae)
    vae.to(device)
    loop = Loop(LoopSettings.pick(section), dict(vae.named_parameters()), out / "vae_run")

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        whole = progress > CROP_SHARE
        size_px, count = (network.SIZE_PX, section["batch"] // 4) if whole else (section["crop_px"], section["batch"])
        wanted = source.batch(count, size_px).to(device)
        posterior = vae.encode(wanted).latent_dist
        found = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = picture_loss(found, wanted) + section["kl"] * kl
        return loss, {"kl": kl.item(), "psnr": psnr_db(found.detach(), wanted).mean().item()}

    def on_save() -> None:
        vae.save_pretrained(out / "vae_raw")
        value = show_reconstruction(vae, source, out / "sheets" / "vae.png")
        print(f"[vae] base pictures {value:.2f} dB", flush=True)

    loop.run(step, on_save)
