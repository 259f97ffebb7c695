"""img2img and inpainting with the embedded model: what they keep of a picture, and what they make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import sdbatch
from sdbatch.results.folder import SweepFolder
from sdbatch.results.png import read_texts
from sdbatch.results.reader import load_rows
from sdbatch.results.row import axes_of
from tests.e2e.conftest import CHECKPOINT, Run

pytestmark = pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the embedded model is not built yet")

PICTURES = Path(sdbatch.__file__).parent.parent / "jobs/pictures"
SIDE, HOLE = 128, slice(32, 96)

Floats = npt.NDArray[np.float32]


def read(path: Path) -> Floats:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)


def distance(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).mean())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return load_rows(SweepFolder(folder)).to_pylist()


def test_strength_leads_from_the_picture_to_the_prompt(place: Path, run: Run) -> None:
    axes = ["task=img2img", f"task.image={PICTURES / 'car.png'}", "task.strength=0,0.2,0.5,1", "prompt=a dog"]
    done = run("-m", *axes, "memory.threads=1", "tracking=none", "out=strengths")
    assert done.returncode == 0, done.stderr
    made = {axes_of(row)["task.strength"]: read(place / "strengths" / row["image"]) for row in rows_of(place / "strengths")}
    car, dog = read(PICTURES / "car.png"), read(PICTURES / "dog.png")
    away = [distance(made[strength], car) for strength in sorted(made)]
    assert away == sorted(away)
    assert away[0] < 8 < 30 < away[1]
    near = [distance(made[strength], dog) for strength in sorted(made)]
    assert near == sorted(near, reverse=True)
    assert near[-1] < 20


def test_inpainting_paints_inside_the_mask_alone(place: Path, run: Run) -> None:
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[HOLE, HOLE] = 255
    Image.fromarray(drawn).save(place / "mask.png")
    axes = ["task=inpaint", f"task.image={PICTURES / 'car.png'}", "task.mask=mask.png", "task.strength=0.9", "prompt=a dog", "seed=1,2"]
    done = run("-m", *axes, "task.mask_blur=0", "memory.threads=1", "tracking=none", "out=inpainted")
    assert done.returncode == 0, done.stderr
    car, dog = read(PICTURES / "car.png"), read(PICTURES / "dog.png")
    rows = rows_of(place / "inpainted")
    for row in rows:
        made = read(place / "inpainted" / row["image"])
        np.testing.assert_array_equal(made[drawn == 0], car[drawn == 0])
        assert distance(made[HOLE, HOLE], dog[HOLE, HOLE]) < 0.5 * distance(made[HOLE, HOLE], car[HOLE, HOLE])
        assert (row["task"], row["task_image"], row["task_mask"]) == ("inpaint", "car.png", "mask.png")
        assert "Denoising strength: 0.9" in read_texts(place / "inpainted" / row["image"])["parameters"]
    image = place / "inpainted" / rows[0]["image"]
    assert "the same bytes" in run("replay", str(image), "to=again.png").stdout


def test_a_hires_fix_makes_the_prompt_s_picture_at_the_larger_size(place: Path, run: Run) -> None:
    """The embedded model knows pictures of 128 pixels: of 96, enlarged, the second pass makes one of them."""
    axes = ["task=hires", "task.upscaler=latent_bicubic,lanczos", "task.strength=0,0.5", "prompt=a car,a dog", "width=96", "height=96"]
    done = run("-m", *axes, "task.width=128", "task.height=128", "seed=3", "memory.threads=1", "tracking=none", "out=hires")
    assert done.returncode == 0, done.stderr
    pictures = {name: read(PICTURES / f"{name}.png") for name in ("car", "dog")}
    rows = rows_of(place / "hires")
    away: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        made, noun = read(place / "hires" / row["image"]), row["prompt"].removeprefix("a ")
        other = next(name for name in pictures if name != noun)
        assert made.shape == (SIDE, SIDE, 3)
        assert distance(made, pictures[noun]) < distance(made, pictures[other])
        away.setdefault((noun, row["task_strength"]), []).append(distance(made, pictures[noun]))
        assert (row["task"], row["width"], row["task_width"], row["image_width"]) == ("hires", 96, SIDE, SIDE)
    for noun in pictures:
        assert max(away[noun, 0.5]) < min(away[noun, 0.0]), "the second pass adds what was missing"
    image = place / "hires" / next(row["image"] for row in rows if row["task_upscaler"] == "lanczos" and row["task_strength"])
    told = read_texts(image)["parameters"]
    for text in ("Size: 96x96", "Denoising strength: 0.5", "Hires resize: 128x128, Hires steps: 10, Hires upscaler: Lanczos"):
        assert text in told
    assert "the same bytes" in run("replay", str(image), "to=again.png").stdout
