"""Every family makes the same pictures as diffusers' own pipeline of it, bit for bit at batch 1, from every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sdbatch.cell import Cell
from sdbatch.families import SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.pipeline.models import TinyModel, diffusers, make_cell
from tests.pipeline.zoo import ZOO, write_zoo_model

Zoo = Callable[[str], TinyModel]
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return cache(lambda name: write_zoo_model(name, tmp_path_factory.mktemp(name)))


def cell_of(model: TinyModel, **changes: Any) -> Cell:
    sampler = SAMPLERS["flow_euler" if model.family == "flux" else "euler"]
    return make_cell(changes.pop("recipe", None) or model.recipe(), **{"sampler": sampler, "steps": 3, **changes})


def draw(cell: Cell, engine: DiffusersEngine | None = None) -> Pixels:
    engine = engine or DiffusersEngine("cpu", 1)
    engine.prepare(cell.recipe)
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    assert picture.fault is None
    return picture.pixels


def draw_with_diffusers(model: TinyModel, cell: Cell, pipeline: Any = None, **inputs: Any) -> Pixels:
    pipeline = pipeline or model.pipeline
    cls = getattr(diffusers, cell.sampler.scheduler)
    pipeline.scheduler = cls.from_config(cls.load_config(str(model.config / "scheduler")), **dict(cell.sampler.options))
    given: dict[str, Any] = {"prompt": cell.prompt, **inputs}
    if cell.negative_prompt:
        given["negative_prompt"] = cell.negative_prompt
    images = pipeline(
        **given,
        num_inference_steps=cell.steps,
        guidance_scale=cell.guidance_scale,
        width=cell.width,
        height=cell.height,
        generator=torch.Generator().manual_seed(cell.seed),
        output_type="np",
    ).images
    return (images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", ZOO)
def test_equals_diffusers(name: str, zoo: Zoo) -> None:
    model = zoo(name)
    cell = cell_of(model)
    limit = {"max_sequence_length": 256} if name == "flux_schnell" else {}
    ours = draw(cell)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell, **limit))
    if model.family != "flux":
        bad = replace(cell, negative_prompt="bad", guidance_scale=3.0, width=96, height=72)
    else:
        bad = replace(cell, guidance_scale=1.5, width=96, height=80)
    np.testing.assert_array_equal(draw(bad), draw_with_diffusers(model, bad, **limit))
