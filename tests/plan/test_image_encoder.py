"""IP-Adapters in a plan: their pictures, the image encoder that is found for them, and every fault before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdbatch.errors import ConfigError, PlanError
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.identify import identify
from sdbatch.weights.image_fit import fits, name_known
from tests.planning import image_ids, plan_of, values
from tests.weights import dialects
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")

WITH = ("ip_adapter=[follow]", "ip_adapter.follow.image=control.png")


@pytest.fixture(autouse=True)
def files(workspace: Path) -> None:
    """A plain IP-Adapter and a plus one, and an image encoder for both."""
    write_safetensors(workspace / "models/ipadapter/follow.safetensors", dialects.ip_adapter(32, 24))
    write_safetensors(workspace / "models/ipadapter/closely.safetensors", dialects.ip_adapter_plus(32, 48))
    write_safetensors(workspace / "models/clip_vision/eye.safetensors", dialects.clip_vision(48, 24))


def faults_of(*overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(*overrides)
    return str(caught.value)


def test_the_one_image_encoder_that_fits_is_taken_and_part_of_the_recipe(workspace: Path) -> None:
    plan = plan_of(*WITH, "ip_adapter.follow.weight=0,0.6", "ip_adapter.follow.end=0.5")
    (recipe,) = plan.recipes
    assert [file.name for file in recipe.ip_adapters] == ["follow"]
    assert [file.name for file in recipe.image_encoders] == ["eye"]
    (prompt,) = plan.cell(1).image_prompts
    assert (prompt.image, prompt.weight, prompt.start, prompt.end) == (str(workspace / "control.png"), 0.6, 0.0, 0.5)
    assert values(plan, "ip_adapter.follow.weight") == [0.0, 0.6]
    assert json.loads(plan.cell(0).config)["image_encoder"] == {"eye": {"file": "eye"}}
    chosen = plan_of(*WITH, "ip_adapter.follow.weight=0,0.6", "ip_adapter.follow.end=0.5", "image_encoder=[eye]")
    assert image_ids(chosen) == image_ids(plan), "found or named, it is the same encoder"
    write_safetensors(workspace / "models/clip_vision/eye.safetensors", dialects.clip_vision(48, 24), metadata={"trained": "anew"})
    assert not set(image_ids(plan_of(*WITH, "ip_adapter.follow.weight=0,0.6", "ip_adapter.follow.end=0.5"))) & set(image_ids(plan))


def test_pictures_and_files_are_swept_like_any_value(workspace: Path) -> None:
    Image.new("RGB", (8, 8), "black").save(workspace / "other.png")
    write_safetensors(workspace / "models/clip_vision/large.safetensors", dialects.clip_vision(64, 40))
    write_safetensors(workspace / "models/ipadapter/far.safetensors", dialects.ip_adapter(32, 40))
    plan = plan_of("ip_adapter=[follow]", "ip_adapter.follow.image=control.png,other.png", "ip_adapter.follow.file=follow,far")
    assert len(set(image_ids(plan))) == 4
    assert {(recipe.ip_adapters[0].path, recipe.image_encoders[0].name) for recipe in plan.recipes} == {
        (str(workspace / "models/ipadapter/follow.safetensors"), "eye"),
        (str(workspace / "models/ipadapter/far.safetensors"), "large"),
    }
    both = plan_of("ip_adapter=[follow,far]", "ip_adapter.follow.image=control.png", "ip_adapter.far.image=other.png")
    assert [file.name for file in both.recipes[0].image_encoders] == ["eye", "large"]
    shared = plan_of("ip_adapter=[follow,closely]", "ip_adapter.follow.image=control.png", "ip_adapter.closely.image=other.png")
    assert [file.name for file in shared.recipes[0].image_encoders] == ["eye"]


def test_every_key_that_changes_the_image_is_in_its_id() -> None:
    base = image_ids(plan_of(*WITH))
    for more in ("ip_adapter.follow.weight=0.5", "ip_adapter.follow.start=0.1", "ip_adapter.follow.end=0.9"):
        assert image_ids(plan_of(*WITH, more)) != base, more
    assert image_ids(plan_of("seed=0")) != base


def test_without_an_image_encoder_it_is_said_what_to_put_where(workspace: Path) -> None:
    (workspace / "models/clip_vision/eye.safetensors").unlink()
    said = faults_of(*WITH)
    assert "image_encoder: none in the models folders gives a 24-wide embedding, which follow reads." in said
    assert "Put the CLIP image encoder that it was trained with into models/clip_vision." in said
    write_safetensors(workspace / "models/ipadapter/real.safetensors", {**dialects.ip_adapter(32), "x": (1,)})
    assert "or run `sdbatch pull image_encoder=clip_vit_h`." in faults_of("ip_adapter=[real]", "ip_adapter.real.image=control.png")


def test_several_that_fit_must_be_chosen_from(workspace: Path) -> None:
    write_safetensors(workspace / "models/clip_vision/lens.safetensors", dialects.clip_vision(56, 24))
    assert "eye and lens both give a 24-wide embedding, which follow reads. Choose one: image_encoder=eye." in faults_of(*WITH)
    assert "eye and lens both give" in faults_of(*WITH, "image_encoder=[eye,lens]")
    assert [file.name for file in plan_of(*WITH, "image_encoder=lens").recipes[0].image_encoders] == ["lens"]


def test_one_that_does_not_fit_is_refused_with_one_that_does(workspace: Path) -> None:
    write_safetensors(workspace / "models/clip_vision/large.safetensors", dialects.clip_vision(64, 40))
    said = faults_of(*WITH, "image_encoder=[large]")
    assert "image_encoder: large does not give a 24-wide embedding, which follow reads. Choose image_encoder=eye." in said
    said = faults_of("ip_adapter=[closely]", "ip_adapter.closely.image=control.png", "image_encoder=[large]")
    assert "large does not give 48-wide layers, which closely reads." in said


def test_faults_come_all_at_once(workspace: Path) -> None:
    write_safetensors(workspace / "models/ipadapter/wide.safetensors", dialects.ip_adapter(768))
    write_safetensors(workspace / "models/ipadapter/faces.safetensors", dialects.ip_adapter_faceid(32))
    named = ("ip_adapter=[wide,faces,red]", *(f"ip_adapter.{name}.image=control.png" for name in ("wide", "faces", "red")))
    with pytest.raises((PlanError, ConfigError)):
        plan_of(*named)
    said = faults_of(*(text.replace(",red]", "]") for text in named if "red.image" not in text), "image_encoder=[eye]")
    assert "ip_adapter.wide: wide is an IP-Adapter for SD 1.x (768-wide cross-attention), the model" in said
    assert "Fitting here: closely, follow." in said
    assert "ip_adapter.faces: faces is an IP-Adapter (32-wide cross-attention), which reads faces by insightface, which is not run;" in said
    said = faults_of("ip_adapter=[follow]", "ip_adapter.follow.weight=11", "ip_adapter.follow.start=1", "ip_adapter.follow.end=0.5")
    assert "ip_adapter.follow.image: is not set; give the picture that the images shall follow." in said
    assert "ip_adapter.follow.weight: 11.0 is out of range" in said
    assert "ip_adapter.follow.end: 0.5 is not after start=1.0" in said
    assert "gone.png: there is no such image" in faults_of("ip_adapter=[follow]", "ip_adapter.follow.image=gone.png")
    assert "is set, but ip_adapter 'ghost' is not in the stack" in faults_of(*WITH, "ip_adapter.ghost.weight=1")


def test_presets_of_the_known_files_say_what_is_absent_and_find_what_is_there(workspace: Path) -> None:
    said = faults_of("ip_adapter=[ip-adapter_sd15]", "ip_adapter.ip-adapter_sd15.image=control.png")
    assert "into models/ipadapter, from https://huggingface.co/h94/IP-Adapter, or run `sdbatch pull ip_adapter=ip-adapter_sd15`" in said
    write_safetensors(workspace / "models/ipadapter/IP-Adapter_SD15.safetensors", dialects.ip_adapter(32, 24))
    plan = plan_of("ip_adapter=[ip-adapter_sd15]", "ip_adapter.ip-adapter_sd15.image=control.png", "ip_adapter.ip-adapter_sd15.weight=0.5")
    assert plan.recipes[0].ip_adapters[0].name == "ip-adapter_sd15"
    (workspace / "models/clip_vision/eye.safetensors").rename(workspace / "models/clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    plan = plan_of(*WITH, "image_encoder=clip_vit_h")
    assert Path(plan.recipes[0].image_encoders[0].path).name == "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"


REAL = {
    "ip-adapter_sd15": (dialects.ip_adapter(768, 1024), "clip_vit_h"),
    "ip-adapter-plus_sd15": (dialects.ip_adapter_plus(768, 1280), "clip_vit_h"),
    "ip-adapter-full-face_sd15": (dialects.ip_adapter_full(768, 1280), "clip_vit_h"),
    "ip-adapter_sdxl": (dialects.ip_adapter(2048, 1280), "clip_vit_bigg"),
    "ip-adapter_sdxl_vit-h": (dialects.ip_adapter(2048, 1024), "clip_vit_h"),
    "ip-adapter-plus_sdxl_vit-h": (dialects.ip_adapter_plus(2048, 1280), "clip_vit_h"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_known_files_find_the_encoder_they_were_trained_with(name: str, tmp_path: Path) -> None:
    tensors, expected = REAL[name]
    adapter = identify(write_safetensors(tmp_path / "adapter.safetensors", tensors))
    encoders = {
        option: identify(write_safetensors(tmp_path / f"{option}.safetensors", dialects.clip_vision(*widths)))
        for option, widths in {"clip_vit_h": (1280, 1024), "clip_vit_bigg": (1664, 1280), "clip_vit_l": (1024, 768)}.items()
    }
    assert all(encoder.variant == option for option, encoder in encoders.items())
    assert [option for option, encoder in encoders.items() if fits(encoder, adapter)] == [expected]
    assert name_known(adapter) == expected


def test_other_eyes_are_no_candidates(workspace: Path) -> None:
    tensors = dialects.clip_vision(48, 24)
    others = {
        "openclip": ({"visual.class_embedding": (48,), "visual.proj": (48, 24)}, "under OpenCLIP's names"),
        "siglip": ({**tensors, "vision_model.head.probe": (1, 1, 48)}, "which no IP-Adapter of SD 1.x or SDXL was trained with"),
        "bare": ({name: shape for name, shape in tensors.items() if "projection" not in name}, "without the projection"),
    }
    for name, (found, _) in others.items():
        write_safetensors(workspace / f"models/clip_vision/{name}.safetensors", found)
    assert [file.name for file in plan_of(*WITH).recipes[0].image_encoders] == ["eye"]
    for name, (_, told) in others.items():
        assert told in faults_of(*WITH, f"image_encoder=[{name}]")
    assert list(Catalog([workspace / "models"]).options("image_encoder")) == ["bare", "eye", "openclip", "siglip"]
