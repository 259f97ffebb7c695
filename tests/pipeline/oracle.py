"""One cell drawn by sdbatch, and by diffusers' own pipeline with the same sampler and seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdbatch.cell import Cell
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.pipeline.models import TinyModel, diffusers

Pixels = npt.NDArray[np.uint8]

OWN_SEED = {"dpmpp_sde", "dpmpp_sde_karras"}
"""Samplers whose noise diffusers does not draw from the generator: they need a seed of their own there."""


def draw(cell: Cell, engine: DiffusersEngine | None = None) -> Pixels:
    engine = engine or DiffusersEngine("cpu", 1)
    engine.prepare(cell.recipe)
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    assert picture.fault is None
    return picture.pixels


def draw_with_diffusers(model: TinyModel, cell: Cell, pipeline: Any = None, **inputs: Any) -> Pixels:
    """Inputs that are None are not passed, for pipelines that do not take them."""
    pipeline = pipeline or model.pipeline
    options: dict[str, Any] = dict(cell.sampler.options)
    step_options = {name: options.pop(name) for name in ("eta",) if name in options}
    if cell.sampler.name in OWN_SEED:
        options["noise_sampler_seed"] = [cell.seed]
    cls = getattr(diffusers, cell.sampler.scheduler)
    pipeline.scheduler = cls.from_config(cls.load_config(str(model.config / "scheduler")), **options)
    given: dict[str, Any] = {
        "prompt": cell.prompt,
        "negative_prompt": cell.negative_prompt or None,
        "num_inference_steps": cell.steps,
        "guidance_scale": cell.guidance_scale,
        "width": cell.width,
        "height": cell.height,
        "generator": torch.Generator().manual_seed(cell.seed),
        **step_options,
        **inputs,
    }
    images = pipeline(output_type="np", **{name: value for name, value in given.items() if value is not None}).images
    return (images[0] * 255).round().astype(np.uint8)
