"""Text encoder: every position from the end token on learns to say what the picture shows and how it looks.

Cross-attention over a padded prompt sees mostly end tokens, so the U-Net receives a linear code of the picture from
its first step; trained from noise instead, it ignores the prompt for tens of thousands of samples.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.tiny import emoji, latent, network, picture, scene
from jobs.tiny.loop import Loop, LoopSettings

TINTS = (None, *picture.TINTS)
BACKGROUNDS = (None, *picture.BACKGROUNDS)
LAYOUTS = ("plain", "mirrored", "pair", *scene.PLACES)


def _layout(item: scene.Scene) -> int:
    if item.kind == "small":
        return LAYOUTS.index(next(name for name, cell in scene.PLACES.items() if cell == item.cell_xy))
    return LAYOUTS.index(item.kind) if item.kind in ("mirrored", "pair") else 0


def label(scenes: list[scene.Scene]) -> torch.Tensor:
    """Class numbers. Shapes: int [scene, 5]: noun, second noun (0 = none), tint, background, layout."""
    rows = []
    for item in scenes:
        second = 0 if item.second is None else item.second + 1
        rows.append((item.noun, second, TINTS.index(item.tint), BACKGROUNDS.index(item.background), _layout(item)))
    return torch.tensor(rows)


def principal_codes(latents: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """PCA of the pictures' latents. Returns codes of deviation 1 [scene, count] and each component's weight."""
    flat = latents.flatten(1)
    flat = flat - flat.mean(0)
    _, _, axes = torch.svd_lowrank(flat, q=count, niter=6)
    codes = flat @ axes
    deviation = codes.std(0)
    return codes / deviation, deviation / deviation.mean()


class Reader(nn.Module):
    """Linear heads over one hidden state."""

    def __init__(self, nouns: int, codes: int) -> None:
        super().__init__()
        sizes = (nouns, nouns + 1, len(TINTS), len(BACKGROUNDS), len(LAYOUTS))
        self.classes = nn.ModuleList(nn.Linear(network.TEXT_WIDTH, size) for size in sizes)
        self.code = nn.Linear(network.TEXT_WIDTH, codes)


def pick_positions(ids: torch.Tensor, end_id: int) -> torch.Tensor:
    """A random position of each row at or after its first end token."""
    first = (ids == end_id).int().argmax(1)
    return first + (torch.rand(len(ids), device=ids.device) * (ids.shape[1] - first)).long()


def train(config: dict[str, Any], out: Path) -> None:
    """Side effects: writes `out`/text_encoder."""
    section = config["text"]
    torch.manual_seed(section["seed"])
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    device = torch.device(config["device"])
    nouns = emoji.load_nouns()
    scenes, latents = latent.load(config, out)
    labels = label(scenes).to(device)
    codes, weights = (part.to(device) for part in principal_codes(latents, section["codes"]))
    model = network.begin(CLIPTextModel, out / "text_encoder", lambda: network.build_text_encoder(tokenizer)).to(device).train()
    reader = Reader(len(nouns), section["codes"]).to(device)
    parameters = {**dict(model.named_parameters()), **{f"reader.{n}": p for n, p in reader.named_parameters()}}
    loop = Loop(LoopSettings.pick(section), parameters, out / "text_run")
    by_kind = group_by_kind(scenes)

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = draw_scenes(by_kind, section["batch"])
        captions = [scene.describe(scenes[index], nouns, random) for index in chosen]
        ids = network.to_ids(tokenizer, captions).to(device)
        hidden = model(ids).last_hidden_state
        state = hidden[torch.arange(len(ids), device=device), pick_positions(ids, tokenizer.eos_token_id)]
        losses, figures = [], {}
        for column, head in enumerate(reader.classes):
            wanted = labels[chosen, column]
            logits = head(state)
            losses.append(functional.cross_entropy(logits, wanted, label_smoothing=0.05))
            figures[f"right{column}"] = (logits.argmax(1) == wanted).float().mean().item()
        code_loss = ((reader.code(state) - codes[chosen]).square() * weights).mean()
        return sum(losses) + section["code_weight"] * code_loss, {"code": code_loss.item(), **figures}

    loop.run(step, lambda: model.save_pretrained(out / "text_encoder"))


def group_by_kind(scenes: list[scene.Scene]) -> dict[str, list[int]]:
    """Kind → numbers of its scenes."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(scenes):
        groups.setdefault(item.kind, []).append(index)
    return groups


def draw_scenes(groups: dict[str, list[int]], count: int) -> list[int]:
    """Random scene numbers, kinds by their shares."""
    kinds = random.choices(list(scene.SHARES), list(scene.SHARES.values()), k=count)
    return [random.choice(groups[kind]) for kind in kinds]
