"""The decoder alone, its encoder frozen: sharper pictures, or stronger colours from the same latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from jobs.tiny import latent, network, picture
from jobs.tiny.loop import Loop, LoopSettings
from jobs.tiny.train_vae import PictureSource, picture_loss, psnr_db, show_reconstruction, to_tensor

Look = Callable[[np.ndarray], np.ndarray]


def train(config: dict[str, Any], out: Path) -> None:
    """Continue the base's decoder. Side effects: writes `out`/vae."""
    _train(config, out, "decoder", "vae", lambda rgb: rgb)


def train_second(config: dict[str, Any], out: Path) -> None:
    """Teach a copy of it stronger colours. Side effects: writes `out`/vae_second."""
    _train(config, out, "second_vae", "vae_second", picture.vivid)


def _train(config: dict[str, Any], out: Path, part: str, folder: str, look: Look) -> None:
    section = config[part]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    source = PictureSource(out, section["seed"])
    vae = network.begin(AutoencoderKL, out / folder, lambda: AutoencoderKL.from_pretrained(out / "vae")).to(device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    parameters = {name: value for name, value in vae.named_parameters() if value.requires_grad}
    loop = Loop(LoopSettings.pick(section), parameters, out / f"{part}_run")
    factor = vae.config.scaling_factor

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [source.draw() for _ in range(section["batch"])]
        wanted = to_tensor(look(np.stack(drawn))).to(device)
        latents = latent.encode(vae, drawn).to(device)
        # The U-Net's latents are not perfect either.
        noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1, device=device) * section["noise"]
        found = vae.decode((latents + noise) / factor).sample
        return picture_loss(found, wanted), {"psnr": psnr_db(found.detach(), wanted).mean().item()}

    def on_save() -> None:
        vae.save_pretrained(out / folder)
        value = show_reconstruction(vae, source, out / "sheets" / f"{part}.png", look)
        print(f"[{part}] base pictures {value:.2f} dB", flush=True)

    loop.run(step, on_save)
