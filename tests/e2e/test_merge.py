"""A sweep over merges: pictures of what lies between two checkpoints, and not one file of weights written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdbatch.results.folder import SweepFolder
from sdbatch.results.infotext import parse
from sdbatch.results.reader import load_rows
from sdbatch.results.row import axes_of
from tests.e2e.conftest import Run

FAST = ("prompt=a red fox", "seed=1", "steps=6", "memory.threads=1", "-m")


@pytest.fixture(scope="module")
def sweep(place: Path, run: Run) -> Path:
    """Ratios from one checkpoint to the other, and the two checkpoints themselves."""
    done = run("checkpoint.merge.b=tiny_pastel", "checkpoint.merge.ratio=0,0.25,1", *FAST, "out=merged")
    assert done.returncode == 0, done.stderr
    done = run("checkpoint=tiny,tiny_pastel", *FAST, "out=plain", "tracking=none")
    assert done.returncode == 0, done.stderr
    return place / "merged"


def rows_of(folder: Path, key: str) -> dict[Any, dict[str, Any]]:
    return {axes_of(row)[key]: row for row in load_rows(SweepFolder(folder)).to_pylist()}


def pixels(folder: Path, row: dict[str, Any]) -> Any:
    return np.asarray(Image.open(folder / row["image"]).convert("RGB"))


def test_the_ends_are_the_checkpoints_bit_for_bit_and_the_middle_is_neither(sweep: Path, place: Path) -> None:
    merged, plain = rows_of(sweep, "checkpoint.merge.ratio"), rows_of(place / "plain", "checkpoint")
    first, last = (pixels(place / "plain", plain[name]) for name in ("tiny", "tiny_pastel"))
    assert np.array_equal(pixels(sweep, merged[0.0]), first)
    assert np.array_equal(pixels(sweep, merged[1.0]), last)
    between = pixels(sweep, merged[0.25]).astype(np.float32)
    assert np.abs(between - first).mean() > 1
    assert np.abs(between - last).mean() > 1
    assert np.abs(between - first).mean() < np.abs(between - last).mean(), "a quarter of the way is nearer to the first"


def test_no_weights_are_written_and_a_grid_is_drawn(sweep: Path, place: Path) -> None:
    found = [path for pattern in ("*.safetensors", "*.ckpt", "*.bin", "*.pt") for path in place.rglob(pattern)]
    assert found == []
    assert Image.open(sweep / "grid.png").width > 300


def test_every_image_says_how_its_checkpoint_was_merged(sweep: Path) -> None:
    row = rows_of(sweep, "checkpoint.merge.ratio")[0.25]
    merge = json.loads(row["merge"])
    assert merge["method"] == "weighted_sum"
    assert merge["ratio"] == 0.25
    assert merge["b"]["name"] == "tiny_pastel"
    assert len(merge["b"]["sha256"]) == 64
    image: Any = Image.open(sweep / row["image"])
    info = parse(image.text["parameters"])
    assert info.parameters["Model"] == "tiny*0.75+tiny_pastel*0.25"
    assert "Model hash" not in info.parameters, "the sum has the hash of neither"
    assert info.hashes.keys() == {"model:tiny", "model:tiny_pastel"}
    assert len({found["image_id"] for found in rows_of(sweep, "checkpoint.merge.ratio").values()}) == 3


def test_the_ratio_is_an_axis_of_grids_from_mlflow(sweep: Path, place: Path, run: Run) -> None:
    del sweep
    done = run("grid", "x=checkpoint.merge.ratio", f"uri=sqlite:///{place / 'mlflow.db'}", "to=drawn")
    assert done.returncode == 0, done.stderr
    assert Image.open(place / "drawn/grid.png").width > 300


def test_replay_merges_again(sweep: Path, place: Path, run: Run) -> None:
    image = sweep / rows_of(sweep, "checkpoint.merge.ratio")[0.25]["image"]
    done = run("replay", str(image), "to=again.png")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "again.png").read_bytes() == image.read_bytes()


def test_a_merged_file_draws_the_same_picture(sweep: Path, place: Path, run: Run) -> None:
    done = run("merge", "tiny", "tiny_pastel", "ratio=0.25", "out=models/checkpoints/quarter.safetensors")
    assert done.returncode == 0, done.stderr
    done = run("checkpoint=quarter", *FAST, "out=file", "tracking=none")
    assert done.returncode == 0, done.stderr
    row = load_rows(SweepFolder(place / "file")).to_pylist()[0]
    assert np.array_equal(pixels(place / "file", row), pixels(sweep, rows_of(sweep, "checkpoint.merge.ratio")[0.25]))
    for path in (place / "models").rglob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("checkpoint.merge.ratio=0,1", "-m"), "checkpoint.merge.ratio: does nothing without a second checkpoint"),
        (("checkpoint.merge.b=tiny_pastel", "checkpoint.merge.method=weigted"), "Did you mean weighted_sum"),
        (("checkpoint.merge.b=tiny_pastel", "checkpoint.merge.method=ties"), "checkpoint.merge.c: is not set; ties is"),
        (("checkpoint.merge.b=tiny_pastel", "checkpoint.merge.blocks=GRADV"), "Did you mean GRAD_V"),
        (("checkpoint.merge.b=tiny_vivid",), "checkpoint.merge.b: tiny_vivid"),
        (("checkpoint.merge.b=tiny_pastel", "checkpoint.merge.ratio=99"), "it goes from -10 to 10"),
    ],
)
def test_a_plan_refuses_what_cannot_be_merged(arguments: tuple[str, ...], said: str, run: Run) -> None:
    done = run("plan", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_plan_counts_merges_and_names_them(run: Run) -> None:
    done = run("plan", "checkpoint.merge.b=tiny_pastel", "checkpoint.merge.blocks=GRAD_V,OUT12", "seed=1,2", "-m")
    assert done.returncode == 0, done.stderr
    assert "4 images" in done.stdout
    assert "2 merges" in done.stdout
    assert "tiny*0.5+tiny_pastel*0.5 by blocks: 2 images" in done.stdout
