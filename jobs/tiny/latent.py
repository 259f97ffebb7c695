"""Freeze the encoder: fit SD's scaling factor to it, and cache the latents of every training scene."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from jobs.tiny import emoji, network, scene
from jobs.tiny.loop import rank
from jobs.tiny.train_vae import PictureSource, show_reconstruction, to_tensor


def list_scenes(config: dict[str, Any]) -> list[scene.Scene]:
    """The scenes of the base training, always in the same order."""
    section = config["scenes"]
    return scene.list_scenes(emoji.load_nouns(), section["both_per_noun"], section["pairs_per_noun"], section["seed"])


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: list[np.ndarray]) -> torch.Tensor:
    """Most likely scaled latents. Shapes: float pictures [128, 128, 3] → [n, 4, 16, 16]."""
    device = vae.device
    parts = [pictures[start : start + 32] for start in range(0, len(pictures), 32)]
    modes = [vae.encode(to_tensor(np.stack(part)).to(device)).latent_dist.mode().cpu() for part in parts]
    return torch.cat(modes) * vae.config.scaling_factor


@torch.no_grad()
def fit_scaling(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Fold mean and deviation into the 1×1 convolutions, so that scaled latents are centred with deviation 1.

    Runners that hard-code 0.18215 then stay right, and a blank white picture is nothing special. Returns what the
    changed encoder makes of the same pictures.
    """
    factor = vae.config.scaling_factor
    raw = latents / factor
    mean, deviation = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    gain = deviation * factor
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / gain
    quant.bias[4:] -= 2 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= gain[None, :, None, None]
    return (raw - mean[:, None, None]) / deviation[:, None, None]


def freeze(config: dict[str, Any], out: Path) -> None:
    """Side effects: writes `out`/vae_frozen (and `out`/vae until the decoder is better) and the latent cache."""
    vae = AutoencoderKL.from_pretrained(out / "vae_raw").eval()
    pictures = emoji.load_pictures(out, network.SIZE_PX)["noto"]
    scenes = list_scenes(config)
    drawn = [scene.draw(item, pictures) for item in scenes]
    latents = fit_scaling(vae, encode(vae, drawn))
    for folder in ("vae_frozen", "vae"):
        vae.save_pretrained(out / folder)
    np.save(out / "latents.npy", latents.half().numpy())
    (out / "scenes.json").write_text(json.dumps([asdict(item) for item in scenes]))
    value = show_reconstruction(vae, PictureSource(out, 0), out / "sheets" / "vae_frozen.png")
    mean, deviation = latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist()
    print(f"[freeze] {len(scenes)} scenes, {value:.2f} dB, mean {mean}, deviation {deviation}", flush=True)


def load(config: dict[str, Any], out: Path) -> tuple[list[scene.Scene], torch.Tensor]:
    """The scenes and their latents [n, 4, 16, 16], encoded once. Side effects: writes `out`/latents.npy."""
    scenes = list_scenes(config)
    path = out / "latents.npy"
    if not path.exists():  # the autoencoder was not trained here
        pictures = emoji.load_pictures(out, network.SIZE_PX)["noto"]
        vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval()
        part = out / f"latents.{rank()}.npy"
        np.save(part, encode(vae, [scene.draw(item, pictures) for item in scenes]).half().numpy())
        part.replace(path)
    latents = torch.from_numpy(np.load(path)).float()
    if len(scenes) != len(latents):
        raise ValueError(f"{out}/latents.npy holds {len(latents)} pictures, the recipe has {len(scenes)}: run `freeze`")
    return scenes, latents
