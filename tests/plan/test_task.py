"""Tasks in a plan: what each needs, what it has no use for, and what of its pictures decides an image."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdbatch.cell import Mask, Source
from sdbatch.errors import ConfigError, PlanError
from sdbatch.verbs.replay import changed_files
from tests.planning import image_ids, plan_of, values

pytestmark = pytest.mark.usefixtures("workspace")

IMG2IMG = ("task=img2img", "task.image=photo.png")
INPAINT = ("task=inpaint", "task.image=photo.png", "task.mask=mask.png")


@pytest.fixture(autouse=True)
def pictures(workspace: Path) -> Path:
    Image.new("RGB", (24, 16), "red").save(workspace / "photo.png")
    Image.new("RGB", (24, 16), "blue").save(workspace / "other.jpg", exif=b"")
    mask = Image.new("L", (12, 8))
    mask.paste(255, (2, 2, 6, 6))
    mask.save(workspace / "mask.png")
    return workspace


def faults_of(*overrides: str) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        plan_of(*overrides)
    return {fault.key: fault.message for fault in caught.value.faults}


def test_a_task_has_good_defaults() -> None:
    source = plan_of(*IMG2IMG).cell(0).source
    assert source is not None
    assert (Path(source.image).name, source.strength, source.resize, source.mask) == ("photo.png", 0.75, "stretch", None)
    cell = plan_of(*INPAINT, "task.resize=crop").cell(0)
    assert cell.task == "inpaint"
    assert isinstance(cell.source, Source)
    assert isinstance(cell.source.mask, Mask)
    assert (cell.source.mask.blur_px, cell.source.mask.fill, cell.source.mask.paste) == (4, "original", True)
    assert cell.source.resize == "crop"


def test_txt2img_is_as_it_was_and_takes_no_picture() -> None:
    cell = plan_of().cell(0)
    assert (cell.task, cell.source) == ("txt2img", None)
    assert image_ids(plan_of("task=txt2img")) == image_ids(plan_of())
    said = faults_of("task.image=photo.png", "task.strength=0.5")
    assert said["task.strength"] == "0.5 does nothing in task=txt2img. Set task=hires, task=img2img or task=inpaint, or leave it out."
    assert said["task.image"].startswith("photo.png does nothing in task=txt2img")


@pytest.mark.parametrize("key", ["mask=mask.png", "mask_blur=4", "fill=noise", "paste=false"])
def test_img2img_has_no_use_for_what_is_inpainting_s(key: str) -> None:
    name = f"task.{key.partition('=')[0]}"
    assert "does nothing in task=img2img. Set task=inpaint" in faults_of(*IMG2IMG, f"task.{key}")[name]
    assert "does nothing in task=img2img" in faults_of("task=img2img,inpaint", *INPAINT[1:], f"task.{key}")[name]


def test_everything_that_is_wrong_is_told_at_once(pictures: Path) -> None:
    (pictures / "torn.png").write_bytes((pictures / "photo.png").read_bytes()[:60])
    said = faults_of("task=inpaint", "task.image=torn.png,gone.png", "task.mask=null,mask.png", "task.strength=1.5", "task.mask_blur=-1")
    assert said["task.strength"] == "1.5 is out of range; it goes from 0 to 1."
    assert said["task.mask_blur"].startswith("-1 is out of range")
    assert said["task.mask"] == "is not set; give a picture that is white where the image is made anew."
    assert {"task.image"} <= said.keys()
    with pytest.raises(PlanError, match=r"torn\.png: it is no picture that can be read[^\n]*\n.*gone\.png: there is no such image"):
        plan_of("task=inpaint", "task.image=torn.png,gone.png", "task.mask=mask.png")


def test_a_cut_off_photograph_is_refused(pictures: Path) -> None:
    Image.effect_noise((200, 200), 80).convert("RGB").save(pictures / "whole.jpg")
    data = (pictures / "whole.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert "no picture that can be read" in faults_of("task=img2img", "task.image=whole.jpg,cut.jpg")["task.image"]


def test_a_strength_that_runs_no_step_is_refused_and_0_is_the_picture_itself() -> None:
    said = faults_of(*IMG2IMG, "task.strength=0.05", "steps=10,20,30")
    assert said["task.strength"] == "0.05 of 10 steps is none at all. Raise one of them, or set 0 for the picture itself."
    assert len(plan_of(*IMG2IMG, "task.strength=0,0.05", "steps=20")) == 2


def test_a_mask_has_the_picture_s_shape_and_masks_something(pictures: Path) -> None:
    Image.new("L", (16, 24), 255).save(pictures / "upright.png")
    Image.new("L", (24, 16), 100).save(pictures / "dark.png")
    said = faults_of(*INPAINT[:2], "task.mask=upright.png")
    assert said["task.mask"] == "upright.png is 16x24, photo.png is 24x16. Give a mask of the picture's shape."
    assert faults_of(*INPAINT[:2], "task.mask=dark.png")["task.mask"] == "dark.png has no white in it, so nothing would be made anew."
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (24, 16)).save(pictures / "turned.jpg", exif=turned)
    Image.new("RGB", (24, 16)).save(pictures / "turned.png", exif=turned)
    assert len(plan_of("task=inpaint", "task.image=turned.jpg,turned.png", "task.mask=upright.png")) == 2


def test_every_key_of_a_task_changes_the_id_and_pictures_count_by_content(pictures: Path) -> None:
    Image.new("L", (24, 16), 255).save(pictures / "white.png")
    keys = ("image=other.jpg", "strength=0.5", "resize=pad", "mask=white.png", "mask_blur=0", "fill=noise", "paste=false")
    ids = [image_ids(plan_of(*INPAINT, *change))[0] for change in [(), *((f"task.{key}",) for key in keys)]]
    assert len({*ids, image_ids(plan_of(*IMG2IMG))[0], image_ids(plan_of())[0]}) == len(ids) + 2
    (pictures / "photo.png").rename(pictures / "renamed.png")
    assert image_ids(plan_of("task=img2img", "task.image=renamed.png")) != image_ids(plan_of("task=img2img", "task.image=other.jpg"))
    assert image_ids(plan_of("task=inpaint", "task.image=renamed.png", "task.mask=mask.png"))[0] == ids[0]


def test_pictures_come_from_globs_and_prompt_files(pictures: Path) -> None:
    plan = plan_of("task=img2img", "task.image=glob([photo*,other*])", "seed=1,2")
    assert values(plan, "task.image") == ["other.jpg", "other.jpg", "photo.png", "photo.png"]
    with pytest.raises(ConfigError, match=r"task\.image: no file matches none\*\.png"):
        plan_of("task=img2img", "task.image=glob(none*.png)")
    (pictures / "list.csv").write_text("prompt,task.image,task.strength\na fox,photo.png,0.5\na dog,other.jpg,0.25\n")
    plan = plan_of("task=img2img", "matrix.prompts.file=list.csv")
    found = [(cell.prompt, Path(cell.source.image).name) for cell in map(plan.cell, range(2)) if cell.source]
    assert sorted(found) == [("a dog", "other.jpg"), ("a fox", "photo.png")]


def test_what_shares_a_batch_stands_together() -> None:
    plan = plan_of(*IMG2IMG, "seed=1,2", "task.strength=0.5,0.75")
    assert values(plan, "task.strength") == [0.5, 0.5, 0.75, 0.75]


def test_replay_names_the_picture_that_has_changed() -> None:
    cell = plan_of(*INPAINT).cell(0)
    assert cell.source is not None
    recorded: dict[str, object] = {"sha256": [cell.recipe.checkpoint.sha256, cell.source.image_sha256]}
    assert changed_files(recorded, cell) == ["mask.png"]
