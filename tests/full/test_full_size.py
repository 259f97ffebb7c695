"""Full-size SD 1.5 and SDXL with random weights load and make an image at a small size, within 24 GiB of memory.

pytest -m full tests/full          3 GB and 7 GB are written once to the folder of SDBATCH_FULL, else to a temporary one
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
import torch

from sdbatch.cell import Cell
from sdbatch.families import SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.full.model import write_checkpoint

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ["SDBATCH_FULL"]) if "SDBATCH_FULL" in os.environ else tmp_path_factory.mktemp("full")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_full_size_model_loads_and_makes_an_image(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_checkpoint(name, folder, torch.bfloat16, dtype="bfloat16")
    cell = Cell(
        image_id="0" * 32,
        recipe=recipe,
        prompt="a photo of a red cat",
        negative_prompt="blurred",
        seed=1,
        sampler=SAMPLERS["euler"],
        steps=2,
        guidance_scale=5.0,
        width=128,
        height=128,
    )
    engine = DiffusersEngine("cpu")
    begun_s = time.perf_counter()
    engine.prepare(recipe)
    loaded_s = time.perf_counter()
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with capsys.disabled():
        made_s = time.perf_counter() - loaded_s
        print(f"\n{name}: loaded in {loaded_s - begun_s:.1f} s, an image in {made_s:.1f} s, {peak_gb:.1f} GB at the peak")
    assert picture.pixels.shape == (128, 128, 3)
    assert picture.fault is None
    assert not picture.facts["retried_fp32"]
    assert {parameter.dtype for part in engine.model.components.values() for parameter in part.parameters()} == {torch.bfloat16}
    assert peak_gb < 24
