"""The same pictures as diffusers' own pipelines, bit for bit at batch 1."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch

from sdbatch.cell import Cell
from sdbatch.families import SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.pipeline.models import TinyModel, make_cell

# The samplers whose noise diffusers does not draw from the generator need a seed of their own there.
OWN_SEED = {"dpmpp_sde", "dpmpp_sde_karras"}


def draw(engine: DiffusersEngine, cell: Cell) -> npt.NDArray[np.uint8]:
    engine.prepare(cell.recipe)
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    assert picture.fault is None
    return picture.pixels


def draw_with_diffusers(model: TinyModel, cell: Cell, pipeline: Any = None, **inputs: Any) -> npt.NDArray[np.uint8]:
    pipeline = pipeline or model.pipeline
    sampler = cell.sampler
    options: dict[str, Any] = dict(sampler.options)
    step_options = {name: options.pop(name) for name in ("eta",) if name in options}
    if sampler.name in OWN_SEED:
        options["noise_sampler_seed"] = [cell.seed]
    config = diffusers.DDIMScheduler.load_config(str(model.config / "scheduler"))
    pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(config, **options)
    given: dict[str, Any] = {"prompt": cell.prompt, "negative_prompt": cell.negative_prompt, **inputs}
    images = pipeline(
        **given,
        num_inference_steps=cell.steps,
        guidance_scale=cell.guidance_scale,
        width=cell.width,
        height=cell.height,
        generator=torch.Generator().manual_seed(cell.seed),
        output_type="np",
        **step_options,
    ).images
    return (images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_equals_diffusers(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), sampler=SAMPLERS[name], negative_prompt="bad")
    ours = draw(engine, cell)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell))
