"""What a family cannot take is refused by the plan, swept or not, with what it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdbatch.errors import PlanError
from tests.planning import plan_of
from tests.weights import dialects
from tests.weights.writer import write_safetensors


def faults_of(*overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(*overrides)
    return str(caught.value)


@pytest.fixture
def flux(workspace: Path) -> tuple[str, ...]:
    """Overrides of a FLUX model whose files are all there."""
    models = workspace / "models"
    write_safetensors(models / "checkpoints/dev.safetensors", dialects.flux())
    write_safetensors(models / "checkpoints/schnell.safetensors", dialects.flux(guidance=False))
    write_safetensors(models / "text_encoders/clip_l.safetensors", dialects.clip(""))
    write_safetensors(models / "text_encoders/t5xxl.safetensors", dialects.t5())
    write_safetensors(models / "vae/ae.safetensors", dialects.ldm_vae(prefix="", latent=16, quant=False))
    config = workspace / "flux"
    (config / "transformer").mkdir(parents=True)
    (config / "transformer/config.json").write_text(json.dumps({"joint_attention_dim": 4096, "guidance_embeds": True}))
    (config / "model_index.json").write_text("{}")
    parts = ("checkpoint=dev", "vae=ae", "text_encoder=clip_l", "text_encoder_2=t5xxl")
    return ("model=flux_dev", "family.config=flux", *parts)


def test_a_flux_model_of_separate_files_plans(flux: tuple[str, ...]) -> None:
    plan = plan_of(*flux, "seed=1,2")
    recipe = plan.recipes[0]
    assert (recipe.family, recipe.text_encoder_2 and recipe.text_encoder_2.name) == ("flux", "t5xxl")


def test_what_flux_cannot_take(flux: tuple[str, ...]) -> None:
    said = faults_of(*flux, "sampler=euler,flow_euler", "width=1024,1000", "clip_skip=2", "negative_prompt=bad")
    assert "sampler: euler does not fit FLUX.1, which predicts the flow. Choose one of flow_euler, " in said
    assert "width: 1000 px cannot be made with FLUX.1; sizes are multiples of 16 px." in said
    assert "clip_skip: 2 asked; with FLUX.1 it goes from 1 to 1." in said
    assert "negative_prompt: FLUX.1 takes none" in said
    assert "1024 px" not in said


def test_a_controlnet_is_not_for_flux(flux: tuple[str, ...]) -> None:
    said = faults_of(*flux, "controlnet=[edges]", "controlnet.edges.image=control.png")
    assert said.startswith("1 fault")
    assert "controlnet.edges: edges is a ControlNet" in said
    assert "the model is FLUX.1 dev, with which sdbatch runs no ControlNet. No controlnet in the models folders fits." in said


def test_parts_that_are_missing(flux: tuple[str, ...]) -> None:
    said = faults_of(*flux[:5], "text_encoder_2=baked")
    assert "text_encoder_2: dev has none of its own; set text_encoder_2=NAME. Fitting here: t5xxl." in said


def test_dev_and_schnell_are_told_apart(flux: tuple[str, ...]) -> None:
    assert "use model=flux_schnell" in faults_of(*flux, "checkpoint=schnell")
    said = faults_of("model=flux_schnell", *flux[2:], "family.config=flux_schnell", "guidance_scale=1,3.5")
    assert "guidance_scale: 3.5 would change nothing: this model was distilled without guidance. Set guidance_scale=1." in said


@pytest.mark.usefixtures("workspace")
def test_samplers_of_flows_are_not_for_noise() -> None:
    said = faults_of("sampler=flow_euler")
    assert "sampler: flow_euler does not fit Stable Diffusion 1.x, which predicts noise or velocity. Choose one of euler, " in said
