"""An upscaler in a plan: options, identity, what it fills, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdbatch.cell import Picture
from sdbatch.errors import PlanError
from sdbatch.plan import compatibility
from sdbatch.plan.estimate import estimate
from sdbatch.results.infotext import infotext_of
from sdbatch.results.row import ImageFile, row_of
from sdbatch.weights.upscaler import missing_library
from tests.planning import image_ids, plan_of
from tests.results.samples import ORIGIN, RECIPE, make_cell, make_picture, weight_file
from tests.weights.writer import write_safetensors

ESRGAN = {"model.0.weight": (8, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (4, 8, 3, 3)}


@pytest.fixture
def networks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Headers of an ESRGAN of factor 4 and one of factor 2; planning needs no library."""
    monkeypatch.setattr(compatibility, "missing_library", lambda: None)
    folder = workspace / "models/upscale_models"
    write_safetensors(folder / "4x_sharp.safetensors", {**ESRGAN, "model.10.weight": (3, 8, 3, 3)})
    write_safetensors(folder / "soft_2x.safetensors", {**ESRGAN, "model.7.weight": (3, 8, 3, 3)}, metadata={"content": "soft"})
    return folder


def test_none_is_the_picture_as_it_always_was(networks: Path) -> None:
    assert image_ids(plan_of("upscaler=none")) == image_ids(plan_of())
    (plain,) = image_ids(plan_of())
    others = image_ids(plan_of("upscaler=none,4x_sharp,soft_2x,lanczos"))
    assert len(set(others)) == 4
    assert plain in others
    (before,) = image_ids(plan_of("upscaler=4x_sharp"))
    (networks / "4x_sharp.safetensors").rename(networks / "renamed.safetensors")
    assert image_ids(plan_of("upscaler=renamed")) == [before], "a file is known by its content"
    assert image_ids(plan_of("upscaler=renamed", "upscaler.tile_px=0")) != [before]


@pytest.mark.usefixtures("networks")
def test_the_estimate_counts_finished_pixels() -> None:
    def disk(*overrides: str) -> float:
        return estimate(plan_of(*overrides)).disk_bytes

    one = disk()
    assert disk("upscaler=4x_sharp") == pytest.approx(16 * one)
    assert disk("upscaler=none,soft_2x,lanczos") == pytest.approx((1 + 4 + 4) * one)
    assert disk("upscaler=4x_sharp", "upscaler.scale=3,null") == pytest.approx((9 + 16) * one)


@pytest.mark.usefixtures("networks")
def test_what_does_nothing_or_cannot_be_is_refused(workspace: Path) -> None:
    with pytest.raises(PlanError, match=r"upscaler\.tile_px: does nothing without an upscaler"):
        plan_of("upscaler.tile_px=64,128")
    with pytest.raises(PlanError, match=r"upscaler\.tile_px: 3 is out of range; it goes from 64 to 8192 px\. 0 enlarges"):
        plan_of("upscaler=4x_sharp", "upscaler.tile_px=3")
    with pytest.raises(PlanError, match=r"upscaler\.scale: 0\.0 is out of range"):
        plan_of("upscaler=lanczos", "upscaler.scale=0")
    write_safetensors(workspace / "models/upscale_models/odd.safetensors", {"to_feat.weight": (8, 3, 3, 3)})
    with pytest.raises(PlanError, match=r"upscaler: odd is an upscaler, of an architecture that is not run"):
        plan_of("upscaler=odd")
    with pytest.raises(PlanError, match=r"upscaler: .*is a LoRA.*, not an upscaler"):
        plan_of("upscaler.file=models/loras/red.safetensors")


@pytest.mark.usefixtures("networks")
def test_without_the_library_the_plan_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(name: str) -> None:
        del name

    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", find_none)
        told = missing_library()
    monkeypatch.setattr(compatibility, "missing_library", lambda: told)
    with pytest.raises(PlanError, match=r"upscaler: 4x_sharp: .* Install it: pip install --no-deps spandrel einops"):
        plan_of("upscaler=4x_sharp")
    assert len(plan_of("upscaler=4x_sharp", "engine=rehearsal")) == 1
    assert len(plan_of("upscaler=lanczos")) == 1, "Lanczos needs none"


def test_rows_and_infotext_tell_both_sizes() -> None:
    enlarged = make_cell(recipe=replace(RECIPE, upscaler=weight_file("4x_sharp")))
    picture = make_picture()
    large = Picture(enlarged, picture.pixels.repeat(4, 0).repeat(4, 1), None, picture.facts)
    row = row_of(large, ImageFile("images/x.png", 10, "cd" * 32), ORIGIN)
    assert (row["width"], row["height"], row["image_width"], row["image_height"]) == (24, 16, 96, 64)
    assert (row["upscaler"], row["upscaler_sha256"], row["upscale"]) == ("4x_sharp", weight_file("4x_sharp").sha256, None)
    told = infotext_of(enlarged, None, (96, 64)).parameters
    assert (told["Size"], told["Postprocess upscale by"], told["Postprocess upscaler"]) == ("24x16", "4", "4x_sharp")
    told = infotext_of(make_cell(upscale=1.5), None, (36, 24)).parameters
    assert (told["Postprocess upscale by"], told["Postprocess upscaler"]) == ("1.5", "Lanczos")
    assert "Postprocess upscaler" not in infotext_of(make_cell()).parameters
