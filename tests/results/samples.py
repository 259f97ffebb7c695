"""Cells and pictures of noise: enough for everything the results do, without a pipeline."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from sdbatch.cell import Cell, Control, Mask, Picture, Recipe, Sampler, Source, Strength, WeightFile
from sdbatch.results.row import Origin

ORIGIN = Origin(sweep="study", worker="cpu-0", host="here")


def weight_file(name: str) -> WeightFile:
    return WeightFile(name, f"/home/someone/models/{name}.safetensors", hashlib.sha256(name.encode()).hexdigest())


RECIPE = Recipe(
    family="sd1",
    config="/home/someone/configs/sd1",
    checkpoint=weight_file("tiny"),
    vae=weight_file("sharp"),
    loras=(weight_file("ink"), weight_file("neon")),
    embeddings=(weight_file("badhands"),),
    controlnets=(weight_file("edges"),),
)

INPAINT = Source("/home/someone/photo.png", "cd" * 32, 0.6, "crop", Mask("/home/someone/mask.png", "ef" * 32, 4, "noise"))


def make_cell(seed: int = 0, **changes: Any) -> Cell:
    """A cell with something of every kind; `changes` are fields of Cell."""
    cell = Cell(
        image_id=hashlib.sha256(f"{seed} {sorted(changes.items(), key=str)}".encode()).hexdigest()[:32],
        recipe=RECIPE,
        prompt="a red circle, badhands",
        negative_prompt="blurry",
        seed=seed,
        sampler=Sampler("dpmpp_2m_karras", "DPM++ 2M", "Karras", "DPMSolverMultistepScheduler", (("use_karras_sigmas", True),)),
        steps=20,
        guidance_scale=7.5,
        width=24,
        height=16,
        clip_skip=2,
        strengths=(Strength(0.5, 0.25), Strength()),
        controls=(Control("/home/someone/secret/pose.png", "ab" * 32, "canny", 0.8, 0.0, 0.5),),
        axes=(("lora.ink.weight", 0.5), ("seed", seed)),
        config='{"prompt":"a red circle, badhands"}',
    )
    return replace(cell, **changes)


def make_picture(seed: int = 0, fault: str | None = None, **changes: Any) -> Picture:
    cell = make_cell(seed, **changes)
    pixels = np.random.default_rng(seed).integers(0, 256, (cell.height, cell.width, 3), dtype=np.uint8)
    facts = {
        "batch_size": 2,
        "batch_slot": seed % 2,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "encode_s": 0.01,
        "denoise_s": 0.5,
        "decode_s": 0.1,
        "retried_fp32": False,
        "applied_keys": {"ink": (128, 128), "neon": (64, 128)},
        "versions": {"torch": "2.13.0", "sdbatch": "0.1.0"},
    }
    return Picture(cell, pixels, fault, facts)
