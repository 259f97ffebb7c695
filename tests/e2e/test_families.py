"""The command line makes images with every family, from files in a models folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Sdbatch
from tests.pipeline.zoo import write_zoo_model

SAMPLERS = {"sd2_768": "euler", "sdxl": "dpmpp_2m", "flux_schnell": "flow_euler"}
ZOO_NAMES = {"sd2_768": "sd2"}


@pytest.mark.parametrize("model", SAMPLERS)
def test_a_sweep_over_guidance_or_seeds(model: str, sdbatch: Sdbatch, workspace: Path) -> None:
    tiny = write_zoo_model(ZOO_NAMES.get(model, model), workspace / "made")
    shutil.copy(tiny.checkpoint.path, workspace / "models/checkpoints/mine.safetensors")
    small = ("width=64", "height=64", "steps=2", f"sampler={SAMPLERS[model]}", "tracking=none", "output.grid=false")
    baked = ("vae=baked", "text_encoder=baked", "text_encoder_2=baked", "checkpoint=mine", f"family.config={tiny.config}")
    axis = "seed=1,2" if model == "flux_schnell" else "guidance_scale=1,5"
    done = sdbatch(f"model={model}", *baked, *small, axis, "out=sweep", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_parquet(workspace / "sweep/rows")
    assert rows["status"].tolist() == ["ok", "ok"]
    assert len(set(rows["image_sha256"])) == 2
    assert set(rows["family"]) == {tiny.family}
