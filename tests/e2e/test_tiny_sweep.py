"""The embedded model through the command line: pictures mean what the prompt says, and a sweep leaves all it promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.results.row import axes_of
from tests.e2e.conftest import CHECKPOINT, Run

pytestmark = pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the embedded model is not built yet")


@pytest.fixture(scope="module")
def sweep(place: Path, run: Run) -> Iterator[Path]:
    """Two strengths of a LoRA, two prompts, two seeds; and the same without the LoRA."""
    axes = ["prompt=a red apple on a blue background,a dog", "seed=1,2", "-m", "memory.threads=1", "batch_size=4"]
    done = run("lora=[style_a]", "lora.style_a.weight=0,1", *axes, "out=styled")
    assert done.returncode == 0, done.stderr
    plain = run(*axes, "out=plain", "tracking=none")
    assert plain.returncode == 0, plain.stderr
    yield place / "styled"


def pictures(folder: Path) -> dict[str, Any]:
    """Axis values as JSON -> pixels in 0..1."""
    found: dict[str, Any] = {}
    for row in load_rows(SweepFolder(folder)).to_pylist():
        axes = axes_of(row)
        found[json.dumps(axes, sort_keys=True)] = np.asarray(Image.open(folder / row["image"]).convert("RGB"), dtype=np.float32) / 255
    return found


def pick(found: dict[str, Any], **axes: Any) -> Any:
    return found[json.dumps({key.replace("__", "."): value for key, value in axes.items()}, sort_keys=True)]


def test_strength_zero_is_no_lora_and_strength_one_is_another_picture(sweep: Path, place: Path) -> None:
    styled, plain = pictures(sweep), pictures(place / "plain")
    for prompt in ("a red apple on a blue background", "a dog"):
        for seed in (1, 2):
            base = pick(plain, prompt=prompt, seed=seed)
            assert np.array_equal(pick(styled, prompt=prompt, seed=seed, lora__style_a__weight=0.0), base)
            assert np.abs(pick(styled, prompt=prompt, seed=seed, lora__style_a__weight=1.0) - base).mean() > 0.01


def test_colours_are_those_of_the_prompt(place: Path, sweep: Path) -> None:
    for seed in (1, 2):
        picture = pick(pictures(place / "plain"), prompt="a red apple on a blue background", seed=seed)
        corners = np.concatenate([picture[:8, :8], picture[:8, -8:], picture[-8:, :8], picture[-8:, -8:]]).reshape(-1, 3).mean(0)
        middle = picture[48:80, 48:80].reshape(-1, 3).mean(0)
        assert corners[2] > corners[0] + 0.1, "the background is blue"
        assert middle[0] > middle[2] + 0.1, "the apple is red"


def test_a_sweep_leaves_all_it_promises(sweep: Path) -> None:
    for name in ("plan.parquet", "images", "rows", "grid.png", "grid.html", "config.yaml", "sweep.json", "log.txt"):
        assert (sweep / name).exists(), name
    row = load_rows(SweepFolder(sweep)).to_pylist()[0]
    assert row["status"] == "ok"
    assert row["loras"][0]["applied_keys"] == row["loras"][0]["total_keys"] > 0
    assert row["versions"]
    about = json.loads((sweep / "sweep.json").read_text())
    assert about["cells"] == 8


def test_a_grid_is_drawn_from_mlflow_and_logged_back(place: Path, run: Run, sweep: Path) -> None:
    del sweep
    done = run("grid", "x=lora.style_a.weight", "y=seed", "z=prompt", f"uri=sqlite:///{place / 'mlflow.db'}", "to=drawn")
    assert done.returncode == 0, done.stderr
    assert Image.open(place / "drawn/grid.png").width > 300
    wrong = run("grid", "x=lora.style_a.wieght", f"uri=sqlite:///{place / 'mlflow.db'}")
    assert wrong.returncode == 2
    assert "lora.style_a.weight" in wrong.stderr


def test_replay_makes_the_same_bytes(place: Path, run: Run, sweep: Path) -> None:
    image = sorted((sweep / "images").glob("*.png"))[3]
    done = run("replay", str(image), "to=again.png")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "again.png").read_bytes() == image.read_bytes()


def test_the_exported_dataset_opens(place: Path, run: Run, sweep: Path) -> None:
    done = run("export", str(sweep), "to=dataset")
    assert done.returncode == 0, done.stderr
    import datasets

    dataset: Any = datasets.load_dataset("parquet", data_dir=str(place / "dataset"), split="train", cache_dir=str(place / "cache"))
    assert len(dataset) == 8
    assert dataset[0]["image"].size == (128, 128)
