"""Textual inversion: new token vectors that stand for a look; nothing else changes."""

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from jobs.tiny import adapter, emoji, latent, metadata, network, sample, scene
from jobs.tiny.diffusion import Diffusion
from jobs.tiny.loop import Loop, LoopSettings


def list_scenes(nouns: list[emoji.Noun], section: dict[str, Any]) -> list[scene.Scene]:
    """Every noun with the embedding's tint and background."""
    kind = "both" if section["background"] else "tint"
    return [scene.Scene(index, kind, section["tint"], section["background"]) for index in range(len(nouns))]


def train(config: dict[str, Any], out: Path, name: str) -> None:
    """Train the vectors of one embedding. Side effects: writes `out`/adapters/`name`.safetensors."""
    section = {**config["embedding"], **config["embeddings"][name]}
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    nouns, pictures = emoji.load_nouns(), emoji.load_pictures(out, network.SIZE_PX)["noto"]
    scenes = list_scenes(nouns, section)
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    latents = latent.encode(vae, [scene.draw(item, pictures) for item in scenes])
    diffusion = Diffusion(out, device, section["time_bias"])
    unet = UNet2DConditionModel.from_pretrained(out / "unet").to(device).requires_grad_(False)
    path, key = out / "adapters" / f"{name}.safetensors", name if section["dialect"] == "diffusers" else "emb_params"
    vectors = add_tokens(diffusion, name, section["vectors"], section["start"])
    if path.exists():
        vectors.data.copy_(load_file(path)[key])
    loop = Loop(LoopSettings.pick(section), {"vectors": vectors}, out / "adapter_runs" / name)
    words = " ".join(f"<{name}_{number}>" for number in range(section["vectors"]))

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = [random.randrange(len(scenes)) for _ in range(section["batch"])]
        captions = [to_caption(nouns[scenes[index].noun], words) for index in chosen]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, latents[chosen], captions)

    def on_save() -> None:
        header = metadata.modelspec(name, "textual-inversion", section["description"], trigger_phrase=name)
        adapter.save({key: vectors.detach().half()}, path, header)
        sample.show(out, name, diffusion, unet, [to_caption(nouns[index], words) for index in sample.spread(nouns)])

    loop.run(step, on_save)


def to_caption(noun: emoji.Noun, words: str) -> str:
    """A prompt with the new words: beside the noun, or alone as a negative prompt would have them."""
    name = scene.with_article(noun.name)
    return random.choice([f"{name}, {words}", f"{words} {noun.name}", f"{name} {words}"])


class Spliced(nn.Module):
    """A token table whose last rows are the trainable vectors."""

    def __init__(self, table: nn.Embedding, vectors: nn.Parameter) -> None:
        super().__init__()
        self.table, self.vectors = table, vectors

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up old and new tokens in one table."""
        return nn.functional.embedding(ids, torch.cat([self.table.weight, self.vectors]))


def add_tokens(diffusion: Diffusion, name: str, count: int, start: str) -> nn.Parameter:
    """Give tokenizer and text encoder new tokens, which begin as a known word."""
    table = diffusion.text_encoder.get_input_embeddings()
    diffusion.text_encoder.requires_grad_(False)
    first = diffusion.tokenizer(start, add_special_tokens=False).input_ids[0]
    diffusion.tokenizer.add_tokens([f"<{name}_{number}>" for number in range(count)])
    vectors = nn.Parameter(table.weight[first].detach().repeat(count, 1))
    embeddings = getattr(diffusion.text_encoder, "text_model", diffusion.text_encoder).embeddings
    embeddings.token_embedding = Spliced(table, vectors)
    return vectors
