"""The U-Net: velocity prediction on cached latents, prompts from the frozen text encoder."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.tiny import emoji, feature, generate, latent, network, scene, sheet, train_text
from jobs.tiny.loop import Loop, LoopSettings

SAMPLE_PROMPTS = 32


class Diffusion:
    """Noise, targets and prompts of one training batch, the same for the base and all that is trained on it."""

    def __init__(self, out: Path, device: torch.device, bias: float) -> None:
        self.scheduler: DDIMScheduler = network.build_scheduler()
        self.alphas = self.scheduler.alphas_cumprod.to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval().to(device)
        self.device, self.bias = device, bias

    def read(self, captions: list[str]) -> torch.Tensor:
        """Hidden states of the captions. Shapes: [n, 77, width]."""
        return self.text_encoder(network.to_ids(self.tokenizer, captions).to(self.device)).last_hidden_state

    def draw_times(self, count: int) -> torch.Tensor:
        """Stratified times, more of the noisy ones: there the prompt decides what appears."""
        uniform = (torch.randperm(count) + torch.rand(count)) / count
        return (uniform**self.bias * 1000).long().clamp(0, 999).to(self.device)

    def corrupt(self, latents: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and the velocity to predict."""
        noise = torch.randn_like(latents)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return noisy, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def loss(
        self, predict: Callable[..., torch.Tensor], latents: torch.Tensor, captions: list[str]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean squared velocity error, and the same by noise quarter (`t3` is the noisiest: prompt-blind if high)."""
        times = self.draw_times(len(latents))
        noisy, wanted = self.corrupt(latents.to(self.device), times)
        with network.autocast(self.device):
            found = predict(noisy, times, self.read(captions))
        each = (found.float() - wanted).square().mean((1, 2, 3))
        quarters = (times // 250).tolist()
        sums: dict[str, list[float]] = {}
        for quarter, value in zip(quarters, each.detach().tolist(), strict=True):
            sums.setdefault(f"t{quarter}", []).append(value)
        return each.mean(), {name: sum(values) / len(values) for name, values in sums.items()}


def drop(caption: str, share: float) -> str:
    """The caption, or nothing: what guidance needs."""
    return "" if random.random() < share else caption


def show_samples(out: Path, unet: UNet2DConditionModel, name: str) -> None:
    """Write a sheet of sample prompts and print how many are recognised."""
    nouns = emoji.load_nouns()
    pipe = generate.load_parts(out, unet.eval())
    chosen = range(0, len(nouns), max(1, len(nouns) // SAMPLE_PROMPTS))
    prompts = [scene.with_article(nouns[index].name) for index in chosen]
    images = generate.generate(pipe, prompts, list(range(len(prompts))))
    pictures = emoji.load_pictures(out, network.SIZE_PX)["noto"]
    found = feature.nearest(feature.describe(images), feature.describe_rgba(pictures))
    right = sum(int(index == hit) for index, hit in zip(chosen, found.tolist(), strict=True))
    sheet.save_sheet(images, out / "sheets" / f"{name}.png", 8, prompts)
    print(f"[{name}] {right} of {len(prompts)} retrieved", flush=True)
    unet.train()


def train(config: dict[str, Any], out: Path) -> None:
    """Train the base. Side effects: writes `out`/unet (averaged) and `out`/scheduler."""
    section = config["unet"]
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    nouns = emoji.load_nouns()
    scenes, latents = latent.load(config, out)
    diffusion = Diffusion(out, device, section["time_bias"])
    diffusion.text_encoder.requires_grad_(False)
    diffusion.scheduler.save_pretrained(out / "scheduler")
    unet = network.build_unet().to(device).train()
    loop = Loop(LoopSettings.pick(section), dict(unet.named_parameters()), out / "unet_run")
    groups = train_text.group_by_kind(scenes)

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = train_text.draw_scenes(groups, section["batch"])
        captions = [drop(scene.describe(scenes[i], nouns, random), section["caption_dropout"]) for i in chosen]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, latents[chosen], captions)

    def on_save() -> None:
        unet.save_pretrained(out / "unet")
        show_samples(out, unet, "unet")

    loop.run(step, on_save)
