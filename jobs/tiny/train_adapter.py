"""LoRA, LoCon and LoHa: a style drawn from another emoji set or a filter, or a noun the base does not know."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoHaConfig, LoraConfig
from torch import nn

from jobs.tiny import adapter, emoji, latent, metadata, network, picture, sample, scene
from jobs.tiny.diffusion import Diffusion, drop
from jobs.tiny.loop import Loop, LoopSettings

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TRANSFORMER = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
TARGETS = {"lora": TRANSFORMER, "loha": ATTENTION, "locon": TRANSFORMER + CONVOLUTIONS}
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]
PER_NOUN = {"background": 2, "tint": 2, "small": 1, "mirrored": 1}


class Lesson:
    """Pictures to learn with their captions; a part of them may be the base's own, so that it forgets nothing."""

    def __init__(self, nouns: list[emoji.Noun], scenes: list[scene.Scene], latents: torch.Tensor) -> None:
        self.nouns, self.scenes, self.latents = nouns, scenes, latents

    def draw(self, trigger: str) -> tuple[torch.Tensor, str]:
        """One picture's latents and a caption; the trigger words follow in half of them."""
        index = random.randrange(len(self.scenes))
        caption = scene.describe(self.scenes[index], self.nouns, random)
        if trigger and random.random() < 0.5:
            caption += f", {trigger}"
        return self.latents[index], caption


def choose_scenes(config: dict[str, Any]) -> list[scene.Scene]:
    """Every noun plain (twice), and a few of its other scenes."""
    chosen = []
    taken: dict[tuple[int, str], int] = {}
    items = latent.list_scenes(config)
    random.Random(0).shuffle(items)
    for item in items:
        key = (item.noun, item.kind)
        taken[key] = taken.get(key, 0) + 1
        if item.kind == "plain":
            chosen += [item, item, item]
        elif taken[key] <= PER_NOUN.get(item.kind, 0):
            chosen.append(item)
    return chosen


def picture_maker(source: str, out: Path) -> Callable[[scene.Scene], np.ndarray]:
    """How a scene looks in the style: another emoji set, or a filter of the base set."""
    if source in picture.FILTERS:
        pictures = emoji.load_pictures(out, network.SIZE_PX)["noto"]
        return lambda item: picture.FILTERS[source](scene.draw(item, pictures))
    pictures = emoji.load_pictures(out, network.SIZE_PX)[source]
    return lambda item: scene.draw(item, pictures)


def style_lesson(config: dict[str, Any], out: Path, vae: AutoencoderKL, source: str) -> Lesson:
    """All nouns in another style."""
    make = picture_maker(source, out)
    scenes = choose_scenes(config)
    unique = list(dict.fromkeys(scenes))
    numbers = {item: number for number, item in enumerate(unique)}
    latents = latent.encode(vae, [make(item) for item in unique])
    return Lesson(emoji.load_nouns(), scenes, latents[[numbers[item] for item in scenes]])


def concept_lesson(config: dict[str, Any], out: Path, vae: AutoencoderKL, noun: emoji.Noun) -> Lesson:
    """One new noun in every tint and on every background it may have."""
    rendered = emoji.render_set("noto", [noun], out / "npm", network.SIZE_PX)
    scenes = [item for item in scene.list_scenes([noun], 20, 0, 0) for _ in range(8 if item.kind == "plain" else 1)]
    return Lesson([noun], scenes, latent.encode(vae, [scene.draw(item, rendered) for item in scenes]))


def peft_config(section: dict[str, Any], targets: list[str]) -> LoraConfig | LoHaConfig:
    """The adapter's shape. Feed-forward layers get another alpha: real files differ by layer too."""
    rank, alpha = section["rank"], section.get("alpha", section["rank"])
    if section["kind"] == "loha":
        return LoHaConfig(r=rank, alpha=alpha, target_modules=targets, init_weights=True)
    feed_forward = section["dialect"] == "kohya" and "ff.net.2" in targets
    pattern = {"ff.net.0.proj": 2 * alpha, "ff.net.2": 2 * alpha} if feed_forward else {}
    return LoraConfig(r=rank, lora_alpha=alpha, alpha_pattern=pattern, init_lora_weights="gaussian", target_modules=targets)


def attach(section: dict[str, Any], unet: UNet2DConditionModel, text_encoder: nn.Module) -> dict[str, nn.Module]:
    """Add trainable layers. Returns the adapted models by part."""
    unet.requires_grad_(False)
    text_encoder.requires_grad_(False)
    unet.add_adapter(peft_config(section, TARGETS[section["kind"]]))
    models: dict[str, nn.Module] = {"unet": unet}
    if section.get("text_encoder"):
        text_encoder.add_adapter(peft_config(section, TEXT_LAYERS))
        models["text_encoder"] = text_encoder
    return models


def train(config: dict[str, Any], out: Path, name: str) -> None:
    """Train one adapter. Side effects: writes `out`/adapters/`name`.safetensors."""
    section = {**config["adapter"], **config["adapters"][name]}
    torch.manual_seed(section["seed"])
    device = torch.device(config["device"])
    vae = AutoencoderKL.from_pretrained(out / "vae_frozen").eval().to(device)
    diffusion = Diffusion(out, device, section["time_bias"])
    unet = UNet2DConditionModel.from_pretrained(out / "unet").to(device)
    lessons = _lessons(config, out, vae, section)
    models = attach(section, unet, diffusion.text_encoder)
    parameters = {
        f"{part}.{key}": value for part, model in models.items() for key, value in model.named_parameters()
        if value.requires_grad
    }  # fmt: skip
    path = out / "adapters" / f"{name}.safetensors"
    earlier_steps = adapter.resume(models, path)
    loop = Loop(LoopSettings.pick(section), parameters, out / "adapter_runs" / name)
    earlier_steps -= loop.step  # what the restart state counts is in the file's count too

    def step(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [random.choice(lessons).draw(section["trigger"]) for _ in range(section["batch"])]
        captions = [drop(caption, section["caption_dropout"]) for _, caption in drawn]
        return diffusion.loss(lambda *inputs: unet(*inputs).sample, torch.stack([z for z, _ in drawn]), captions)

    def on_save() -> None:
        weights = adapter.to_kohya(models) if section["dialect"] == "kohya" else adapter.to_diffusers(models)
        header = metadata.of_adapter(name, section, earlier_steps + loop.step, sum(len(lesson.scenes) for lesson in lessons))
        adapter.save(weights, path, header)
        nouns = lessons[0].nouns
        sample.show(out, name, diffusion, unet, [scene.with_article(nouns[index].name) for index in sample.spread(nouns)])

    loop.run(step, on_save)


def _lessons(config: dict[str, Any], out: Path, vae: AutoencoderKL, section: dict[str, Any]) -> list[Lesson]:
    if section["source"] != "concept":
        return [style_lesson(config, out, vae, section["source"])]
    scenes, latents = latent.load(config, out)
    noun = emoji.Noun(section["noun"], section["emoji"])
    return [concept_lesson(config, out, vae, noun), Lesson(emoji.load_nouns(), scenes, latents)]
