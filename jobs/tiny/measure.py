"""Measurements of the base: speed, retrieval, composition, robustness, the two forms, the samplers."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from jobs.tiny import feature, generate, picture, scene, shipped
from jobs.tiny.bench import Bench, share

Figures = dict[str, Any]
SEEDS = (0, 1, 2, 3)
BORDER_PX = 4
LONG_PROMPT = "a dog " + "and a very nice big cat on a small blue boat " * 20
ODD_PROMPTS = ("", "zxqv wombat flurble", LONG_PROMPT, "!!! 🦄 ((dog)) <lora:x:1> \\", "ein Hund, кот, 犬")
COMMON = (
    "dog cat lion tiger horse unicorn cow pig rabbit bear panda monkey frog chicken penguin owl duck turtle "
    "snake fish octopus crab butterfly bee spider elephant sheep rose sunflower tree cactus mushroom watermelon "
    "banana apple strawberry carrot hamburger pizza cake sun star rainbow snowman umbrella balloon pumpkin ghost "
    "alien robot heart bus car train airplane rocket house guitar glasses shirt crown diamond camera key"
)


def measure_speed(b: Bench) -> Figures:
    """Seconds per picture of 20 guided steps, alone and in a batch of 8."""
    figures: Figures = {"threads": torch.get_num_threads(), "steps": generate.STEPS}
    for count in (1, 8):
        prompts = b.prompts(list(range(count)))
        times = []
        for _ in range(4):
            started = time.perf_counter()
            generate.generate(b.pipe, prompts, list(range(count)))
            times.append((time.perf_counter() - started) / count)
        figures[f"seconds_per_image_batch_{count}"] = round(min(times), 3)
    figures["batch_8_to_1"] = round(figures["seconds_per_image_batch_8"] / figures["seconds_per_image_batch_1"], 3)
    return figures


def measure_retrieval(b: Bench) -> Figures:
    """Is the nearest of all reference pictures the prompted one?"""
    references = b.references()
    wanted = np.tile(np.arange(len(b.nouns)), len(SEEDS))
    seeds = np.repeat(SEEDS, len(b.nouns)).tolist()
    images = generate.generate(b.pipe, b.prompts(wanted.tolist()), seeds)
    features = feature.describe(images)
    right = feature.nearest(features, references) == wanted
    rank = (features @ references.T > (features * references[wanted]).sum(1, keepdims=True)).sum(1)
    per_noun = right.reshape(len(SEEDS), -1).mean(0)
    weak = [f"{noun.name} {value:.2f}" for noun, value in zip(b.nouns, per_noun, strict=True) if value < 1]
    b.show(images[: len(b.nouns)], "vocabulary", 16, b.prompts())
    names = {noun.name: index for index, noun in enumerate(b.nouns)}
    common = [names[word] for word in COMMON.split() if word in names][:64]
    b.show([images[index] for index in common], "common", 8, b.prompts(common))
    return {"images": len(images), "top1": share(right), "top5": share(rank < 5), "weak": weak}


def _ideals(b: Bench, kind: str) -> tuple[list[scene.Scene], np.ndarray]:
    names: list[str | None] = [None, *(picture.TINTS if kind == "tint" else picture.BACKGROUNDS)]
    scenes = [scene.Scene(index, kind, **{kind: name}) for index in range(len(b.nouns)) for name in names]
    return scenes, feature.describe_arrays(np.stack([b.draw(item) for item in scenes]))


def read_backgrounds(images: list[Image.Image]) -> list[str | None]:
    """The named background nearest to the median colour of each picture's border."""
    rgb = feature.to_array(images)
    ring = np.ones(rgb.shape[1:3], bool)
    ring[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    names: list[str | None] = [None, *picture.BACKGROUNDS]
    colours = np.array([picture.WHITE, *picture.BACKGROUNDS.values()]) / 255
    found = np.median(rgb[:, ring], axis=1)
    return [names[number] for number in np.linalg.norm(found[:, None] - colours, axis=-1).argmin(1)]


def read_tints(b: Bench, images: list[Image.Image]) -> list[str | None]:
    """The tint whose ideal picture of the same noun has the nearest colours, cell by cell."""
    names: list[str | None] = [None, *picture.TINTS]
    found = []
    for index, cells in enumerate(feature.colour_cells(feature.to_array(images))):
        ideals = np.stack([b.draw(scene.Scene(index, "tint", tint=name)) for name in names])
        distances = np.linalg.norm((feature.colour_cells(ideals) - cells).reshape(len(names), -1), axis=1)
        found.append(names[distances.argmin()])
    return found


def measure_composition(b: Bench) -> Figures:
    """Held-out pairs: is the colour right, is the noun (the nearest ideal of all nouns × colours), are both?"""
    figures: Figures = {}
    templates = {"tint": "a {colour} {noun}", "background": "a {noun} on a {colour} background"}
    readers = {"tint": partial(read_tints, b), "background": read_backgrounds}
    held = {"tint": scene.held_out_tint, "background": scene.held_out_background}
    for kind, template in templates.items():
        scenes, references = _ideals(b, kind)
        colours = [held[kind](noun) for noun in b.nouns]
        prompts = [template.format(colour=c, noun=n.name) for c, n in zip(colours, b.nouns, strict=True)]
        images = generate.generate(b.pipe, prompts, list(range(len(prompts))))
        features = feature.describe(images)
        found = [scenes[number] for number in feature.nearest(features, references)]
        nouns_right = [item.noun == index for index, item in enumerate(found)]
        colour_right = [name == colour for name, colour in zip(readers[kind](images), colours, strict=True)]
        both = np.logical_and(colour_right, nouns_right)
        figures[kind] = {"right": share(colour_right), "noun": share(nouns_right), "both": share(both)}
        b.show(images, f"held_out_{kind}", 16, prompts)
    return figures


def measure_robustness(b: Bench) -> Figures:
    """Odd prompts make a picture without a fault."""
    images = generate.generate(b.pipe, ODD_PROMPTS, [0] * len(ODD_PROMPTS))
    b.show(images, "odd", len(images), [prompt[:20] or "(empty)" for prompt in ODD_PROMPTS])
    return {"prompts": len(ODD_PROMPTS), "pictures": sum(image.size == (128, 128) for image in images)}


def measure_forms(b: Bench) -> Figures:
    """The diffusers folder and the single file make the same picture."""
    single = shipped.load_file(b.embedded, shipped.BASE)
    prompts = b.prompts(b.spread(8))
    pair = [feature.to_array(generate.generate(pipe, prompts, [0] * 8)) for pipe in (b.pipe, single)]
    return {"largest_difference": float(np.abs(pair[0] - pair[1]).max())}


def measure_samplers(b: Bench) -> Figures:
    """Retrieval of some nouns with three samplers built from the one shipped configuration."""
    chosen, references = b.spread(b.control_nouns), b.references()
    original, figures, images = b.pipe.scheduler, {}, []
    for kind in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        b.pipe.scheduler = kind.from_config(original.config)
        made = generate.generate(b.pipe, b.prompts(chosen), chosen)
        figures[kind.__name__] = share(feature.nearest(feature.describe(made), references) == np.array(chosen))
        images += made[:16]
    b.pipe.scheduler = original
    b.show(images, "samplers", 16)
    return figures
