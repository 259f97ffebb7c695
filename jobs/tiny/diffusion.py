"""Noise, targets and prompts of a training batch: the same for the base and all that is trained on it."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.tiny import network


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
