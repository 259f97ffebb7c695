"""A hires fix in a plan: its size and steps, what enlarges, what of it decides an image, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from sdbatch.cell import Enlarger, Hires
from sdbatch.errors import PlanError
from sdbatch.families.enlargers import ENLARGERS
from sdbatch.pipeline.engine import batch_key
from sdbatch.plan import compatibility
from sdbatch.plan.estimate import estimate
from sdbatch.results.infotext import infotext_of
from sdbatch.results.png import cell_facts
from sdbatch.results.row import ImageFile, row_of
from sdbatch.run.batch import batch_size_name
from tests.plan.test_upscaler import ESRGAN
from tests.planning import image_ids, plan_of
from tests.results.samples import ORIGIN, RECIPE, make_cell, make_picture, weight_file
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")


def faults_of(*overrides: str) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        plan_of("task=hires", *overrides)
    return {fault.key: fault.message for fault in caught.value.faults}


def hires_of(*overrides: str) -> Hires:
    hires = plan_of("task=hires", *overrides).cell(0).hires
    assert hires is not None
    return hires


@pytest.fixture
def networks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The header of an ESRGAN of factor 4; planning needs no library."""
    monkeypatch.setattr(compatibility, "missing_library", lambda: None)
    write_safetensors(workspace / "models/upscale_models/4x_sharp.safetensors", {**ESRGAN, "model.10.weight": (3, 8, 3, 3)})
    return workspace / "models/upscale_models"


def test_it_has_good_defaults() -> None:
    cell = plan_of("task=hires", "width=64", "height=48", "steps=12").cell(0)
    assert (cell.task, cell.source) == ("hires", None)
    assert cell.hires == Hires(128, 96, 0.7, 12, ENLARGERS["latent"], 2.0)
    assert cell.decoded_px == (128, 96)
    assert batch_size_name(cell) == batch_size_name(plan_of("width=128", "height=96").cell(0))


def test_the_size_is_a_factor_or_given_and_the_steps_are_its_own() -> None:
    assert (hires_of("task.scale=1.3").width, hires_of("task.scale=1.3").height) == (160, 160), "166 rounded down to eights"
    assert hires_of("width=320", "task.scale=1.15").width == 368, "though 320 * 1.15 is a little less"
    given = hires_of("task.width=192", "task.height=160", "task.steps=7")
    assert (given.width, given.height, given.steps, given.scale) == (192, 160, 7, None)


def test_everything_of_it_can_be_swept_and_decides_the_image(networks: Path) -> None:
    axes = ("task.strength=0.3,0.5", "task.scale=1.5,2", "task.steps=0,10", "task.upscaler=latent,lanczos,4x_sharp")
    plan = plan_of("task=hires", *axes, "seed=1,2")
    assert len(set(image_ids(plan))) == 48
    keys = [batch_key(plan.cell(index)) for index in range(len(plan))]
    assert len(list(groupby(keys))) == len(set(keys)) == 24, "what can share a batch stands together"
    recipes = {recipe.hires_upscaler.name if recipe.hires_upscaler else None for recipe in plan.recipes}
    assert recipes == {None, "4x_sharp"}, "ways that need no file share the weights"
    (before,) = image_ids(plan_of("task=hires", "task.upscaler=4x_sharp"))
    (networks / "4x_sharp.safetensors").rename(networks / "renamed.safetensors")
    assert image_ids(plan_of("task=hires", "task.upscaler=renamed")) == [before], "a file is known by its content"
    assert hires_of("task.upscaler=renamed").enlarger == Enlarger("renamed", "renamed")


def test_tasks_sweep_beside_each_other() -> None:
    plan = plan_of("task=txt2img,hires")
    assert sorted(plan.cell(index).task for index in range(2)) == ["hires", "txt2img"]
    assert image_ids(plan_of()) == image_ids(plan_of("task=txt2img"))
    assert set(image_ids(plan_of())) < set(image_ids(plan))


@pytest.mark.usefixtures("networks")
def test_the_estimate_counts_what_the_second_pass_makes() -> None:
    def disk(*overrides: str) -> float:
        return estimate(plan_of("width=64", "height=64", *overrides)).disk_bytes

    one = disk()
    assert disk("task=hires") == pytest.approx(4 * one)
    assert disk("task=hires", "task.scale=1.5,2", "upscaler=lanczos") == pytest.approx((9 + 16) * one)
    assert disk("task=hires", "task.width=128", "task.height=64,128") == pytest.approx((2 + 4) * one)
    steps = estimate(plan_of("width=64", "height=64", "task=hires", "task.strength=0.5", "steps=10")).work_step_px
    assert steps == 64 * 64 * 10 + 128 * 128 * 5
    assert "1 hires upscaler" in estimate(plan_of("task=hires", "task.upscaler=4x_sharp")).loads


def test_what_it_cannot_make_is_told_at_once() -> None:
    sides = ("width=128", "height=128", "task.width=64", "task.height=132")
    said = faults_of(*sides, "task.strength=0.01", "task.steps=2", "task.upscaler=latnt")
    assert said["task.width"] == "64 px is less than the 128 px of the first pass. Raise it, or lower width."
    assert said["task.height"].startswith("132 px cannot be made; sizes are multiples of 8")
    assert said["task.strength"] == "0.01 of 2 steps is none at all. Raise one of them, or set 0 for the picture itself."
    assert said["task.upscaler"].startswith("latnt: there is no file of this name.")
    assert "Without a file: latent, " in said["task.upscaler"]
    assert faults_of("task.width=256")["task.height"] == "is not set; give both sides, or neither and task.scale."
    assert faults_of("task.scale=null")["task.scale"] == "is not set; give a factor, or task.width and task.height."
    assert faults_of("task.width=256", "task.height=256", "task.scale=1,2")["task.scale"].startswith("does nothing beside task.width")
    assert faults_of("width=8192", "task.scale=4")["task.scale"] == "4 times 8192x128 is more than 16384 px a side. Lower it."
    assert faults_of("task.scale=0.5")["task.scale"].startswith("0.5 is out of range; it goes from 1 to 8")
    assert faults_of("task.upscaler=null")["task.upscaler"].startswith("is not set; give a way of enlarging, such as latent")
    assert "does nothing in task=hires" in faults_of("task.mask_blur=4")["task.mask_blur"]
    with pytest.raises(PlanError, match=r"task\.upscaler: red is a LoRA"):
        plan_of("task=hires", "task.upscaler=models/loras/red.safetensors")


def told(**changes: Any) -> dict[str, str]:
    hires = replace(Hires(48, 32, 0.5, 20, ENLARGERS["latent_nearest"], 2.0), **changes)
    return infotext_of(make_cell(hires=hires)).parameters


def test_the_infotext_says_it_as_a1111_does() -> None:
    said = told()
    assert (said["Size"], said["Denoising strength"], said["Hires upscale"]) == ("24x16", "0.5", "2")
    # A1111 runs as many steps as it says, ours are a share of them.
    assert (said["Hires steps"], said["Hires upscaler"]) == ("10", "Latent (nearest)")
    keys = list(said)
    assert keys.index("Model") < keys.index("Denoising strength") < keys.index("Clip skip") < keys.index("Hires upscale")
    sized = told(scale=None, strength=0.0, enlarger=Enlarger("4x_sharp", "4x_sharp"))
    assert (sized["Hires resize"], sized["Hires upscaler"]) == ("48x32", "4x_sharp")
    assert not {"Hires upscale", "Hires steps"} & sized.keys()
    cell = make_cell(hires=Hires(48, 32, 0.5, 20, ENLARGERS["latent"], 2.0), recipe=replace(RECIPE, upscaler=weight_file("up")))
    assert infotext_of(cell, None, (192, 128)).parameters["Postprocess upscale by"] == "4", "of what the last pass has made"


def test_rows_and_pngs_hold_it() -> None:
    network = weight_file("4x_sharp")
    hires = Hires(48, 32, 0.5, 12, Enlarger("4x_sharp", "4x_sharp"), 2.0)
    picture = make_picture(recipe=replace(RECIPE, hires_upscaler=network), hires=hires)
    row = row_of(picture, ImageFile("images/x.png", 10, "cd" * 32), ORIGIN)
    kept = {key: row[key] for key in row if key.startswith("task") and row[key] is not None}
    assert kept == {
        "task": "hires",
        "task_strength": 0.5,
        "task_steps": 12,
        "task_width": 48,
        "task_height": 32,
        "task_upscaler": "4x_sharp",
        "task_upscaler_sha256": network.sha256,
    }
    assert (row["width"], row["height"]) == (24, 16)
    facts = cell_facts(picture.cell)
    assert facts["hires"]["width"] == 48
    assert facts["recipe"]["hires_upscaler"]["sha256"] == network.sha256
    assert "hires" not in cell_facts(make_cell())
