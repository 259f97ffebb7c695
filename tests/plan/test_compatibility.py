"""What does not fit is refused by name before anything is loaded, with what would fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.errors import PlanError
from sdbatch.run.prepare import prepare
from tests.planning import plan_of
from tests.weights import dialects
from tests.weights.writer import write_safetensors

pytestmark = pytest.mark.usefixtures("workspace")


def test_all_misfits_come_in_one_report_with_what_fits(workspace: Path) -> None:
    write_safetensors(workspace / "models/loras/wide.safetensors", dialects.kohya(dialects.unet_modules(64), rank=2))
    write_safetensors(workspace / "models/embeddings/long.safetensors", {"emb_params": (2, 64)})
    with pytest.raises(PlanError) as caught:
        plan_of("lora=[red],[wide]", "embedding=[long]")
    text = str(caught.value)
    assert "lora.wide: wide is a LoRA (64-wide cross-attention)" in text
    assert "Fitting here: blue, red." in text
    assert "embedding.long: long is an embedding (64-wide tokens)" in text
    assert "Fitting here: nice." in text


def test_a_file_of_another_kind_is_named_for_what_it_is(workspace: Path) -> None:
    write_safetensors(workspace / "models/loras/red.safetensors", {"emb_params": (2, 32)})
    with pytest.raises(PlanError, match=r"lora\.red: red is an embedding .* use it as embedding="):
        plan_of("lora=[red]")


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"<!DOCTYPE html><html>login</html>", "HTML page")])
def test_a_damaged_file_is_refused(workspace: Path, content: bytes, said: str) -> None:
    path = workspace / "models/checkpoints/base.safetensors"
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(PlanError, match=said):
        plan_of("seed=1,2")


def write_base(workspace: Path, name: str, tensors: dialects.Tensors) -> None:
    """A checkpoint of full width; its vocabulary is cut short, so that it is small."""
    small = {key: (8, shape[1]) if "token_embedding" in key else tuple(min(side, 4096) for side in shape) for key, shape in tensors.items()}
    write_safetensors(workspace / f"models/checkpoints/{name}.safetensors", small, metadata={"name": name})


def faults_of(*overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        prepare(read_arguments(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "tensors", "told"),
    [
        (
            "sd1",
            dialects.sdxl(),
            "a checkpoint for SDXL (2048-wide cross-attention), but the model is set up as Stable Diffusion 1.x: use model=sdxl.",
        ),
        ("tiny", dialects.sd1(), "but the model is set up as Stable Diffusion 1.x (128-wide): use model=sd1."),
        ("sd1", dialects.sdxl_refiner(), "use model=sdxl_refiner."),
        ("sd1", dialects.flux(dialects.LDM, guidance=False), "use model=flux_schnell."),
        (
            "sd1",
            {**dialects.sd3(), **dialects.ldm_vae(latent=16)},
            "a checkpoint for SD 3.x (4096-wide cross-attention), which sdbatch does not run.",
        ),
    ],
)
def test_a_checkpoint_of_another_family_names_the_model_to_use(workspace: Path, model: str, tensors: dialects.Tensors, told: str) -> None:
    write_base(workspace, "other", tensors)
    text = faults_of(f"model={model}", "checkpoint=other")
    assert f"checkpoint: other is {'a transformer without' if 'flux' in told else ''}" in text
    assert told in text


def test_what_the_checkpoint_lacks_is_told_with_what_fits(workspace: Path) -> None:
    write_base(workspace, "bare", dialects.ldm_unet(768))
    write_safetensors(workspace / "models/vae/whole.safetensors", dialects.ldm_vae(""))
    text = faults_of("model=sd1", "checkpoint=bare")
    assert "vae: bare has none of its own; set vae=NAME. Fitting here: soft, whole." in text
    assert "text_encoder: bare has none of its own; set text_encoder=NAME." in text
    assert "vae:" not in faults_of("model=sd1", "checkpoint=bare", "vae=whole")


def test_every_misfit_of_a_plan_comes_at_once(workspace: Path) -> None:
    write_base(workspace, "good", dialects.sd1())
    files = {
        "loras/xl": dialects.kohya(dialects.unet_modules(2048)),
        "embeddings/xl_word": {"clip_l": (2, 768), "clip_g": (2, 1280)},
        "controlnet/xl_edges": dialects.diffusers_controlnet(2048),
        "vae/wide": dialects.ldm_vae("", 16),
        "text_encoders/big": dialects.clip("", 1280),
    }
    for name, tensors in files.items():
        small = {key: (8, shape[1]) if "token_embedding" in key else shape for key, shape in tensors.items()}
        write_safetensors(workspace / f"models/{name}.safetensors", small)
    chosen = [
        "lora=[xl]",
        "embedding=[xl_word]",
        "controlnet=[xl_edges]",
        "controlnet.xl_edges.image=control.png",
        "vae=wide",
        "text_encoder=big",
    ]
    text = faults_of("model=sd1", "checkpoint=good", *chosen)
    for key in ("lora.xl:", "embedding.xl_word:", "controlnet.xl_edges:", "vae:", "text_encoder:"):
        assert f"\n  {key}" in text
    assert text.startswith("5 faults")


def test_what_cannot_be_merged_is_told_before_it_is_opened(workspace: Path) -> None:
    write_base(workspace, "good", dialects.sd1())
    write_base(workspace, "twin", dialects.sd1())
    write_base(workspace, "inpainting", dialects.sd1(9))
    deeper = {"model.diffusion_model.input_blocks.9.1.norm.weight": (320,), "model.diffusion_model.time_embed.0.weight": (64, 64)}
    write_base(workspace, "deeper", {**dialects.sd1(), **deeper})
    prepare(read_arguments(["model=sd1", "checkpoint=good", "checkpoint.merge.b=twin"]))
    prepare(read_arguments(["model=sd1", "checkpoint=inpainting", "checkpoint.merge.b=good"]))
    said = faults_of("-m", "model=sd1", "checkpoint=good", "checkpoint.merge.b=deeper,inpainting", "checkpoint.ema=true")
    assert "checkpoint.merge.b: deeper cannot be merged with good: " in said
    write_base(workspace, "xl", dialects.sdxl())
    assert faults_of("model=sd1", "checkpoint=good", "checkpoint.merge.b=xl").startswith("1 fault")
    assert (
        "checkpoint.merge.b: inpainting cannot be merged with good: 1 tensors differ (model.diffusion_model.input_blocks.0.0.weight" in said
    )
    assert "checkpoint.ema: averaged weights cannot be merged. Set checkpoint.ema=false." in said
