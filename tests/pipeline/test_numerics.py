"""The same pictures as diffusers' own pipelines, bit for bit at batch 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdbatch.cell import Control, Strength, WeightFile
from sdbatch.families import FAMILIES, SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.adapters.lora_files import attention_layers, kohya, renamed
from tests.pipeline.models import (
    WIDTH,
    TinyModel,
    add_to_weights,
    build_controlnet,
    build_pipeline,
    diffusers,
    make_cell,
    original_vae,
    save,
    to_original_keys,
    write_picture,
)
from tests.pipeline.oracle import draw, draw_with_diffusers


@pytest.mark.parametrize("name", FAMILIES["sd1"].samplers)
def test_every_sampler_equals_diffusers(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), sampler=SAMPLERS[name], negative_prompt="bad")
    ours = draw(cell, engine)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell))


def test_guidance_1_skips_the_unconditional_pass_as_diffusers_does(engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), guidance_scale=1.0)
    np.testing.assert_array_equal(draw(cell, engine), draw_with_diffusers(model, cell))


def test_guidance_rescale(engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), guidance_rescale=0.7, guidance_scale=9.0)
    ours = draw(cell, engine)
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell, guidance_rescale=0.7))
    assert (ours != draw(make_cell(model.recipe(), guidance_scale=9.0), engine)).any()


def test_other_sizes(engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), width=96, height=72)
    np.testing.assert_array_equal(draw(cell, engine), draw_with_diffusers(model, cell))


@pytest.mark.parametrize("clip_skip", [2, 3])
def test_clip_skip_is_that_hidden_state_under_the_final_norm(clip_skip: int, engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(), clip_skip=clip_skip)

    def encode(prompt: str) -> torch.Tensor:
        text = model.pipeline.text_encoder
        ids = model.pipeline.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            return text.final_layer_norm(text(ids, output_hidden_states=True).hidden_states[-clip_skip])

    embeds = {"prompt": None, "negative_prompt": None, "prompt_embeds": encode(cell.prompt), "negative_prompt_embeds": encode("")}
    ours = draw(cell, engine)
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell, **embeds))
    assert (ours != draw(make_cell(model.recipe()), engine)).any()


@pytest.mark.parametrize(("sampler", "calls"), [("euler", [0, 1, 2, 3, 4, 5]), ("heun", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5])])
def test_a_prompt_changes_on_the_way(sampler: str, calls: list[int], engine: DiffusersEngine, model: TinyModel) -> None:
    """Against diffusers' own hook for it, which is asked after each call of the model; `calls` are their steps."""
    cell = make_cell(model.recipe(), sampler=SAMPLERS[sampler], steps=6, prompt="a [cat:dog:2] [big|]", negative_prompt="[bad::0.5]")
    texts = [("a cat big", "bad"), ("a cat ", "bad"), ("a dog big", "bad"), ("a dog ", ""), ("a dog big", ""), ("a dog ", "")]
    told: list[torch.Tensor] = []
    for prompt, negative in texts:
        positive, unconditional = model.pipeline.encode_prompt(prompt, "cpu", 1, True, negative)
        told.append(torch.cat([unconditional, positive]))

    def change(pipeline: Any, call: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": told[calls[call + 1]]} if call + 1 < len(calls) else {}

    first = dict(zip(("prompt", "negative_prompt"), texts[0], strict=True))
    theirs = draw_with_diffusers(model, cell, callback_on_step_end=change, **first)
    np.testing.assert_array_equal(draw(cell, engine), theirs)
    assert (theirs != draw_with_diffusers(model, cell, **first)).any()


@pytest.mark.parametrize("vectors", [1, 3])
def test_embedding_equals_load_textual_inversion(vectors: int, engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    vector = torch.randn(vectors, WIDTH, generator=torch.Generator().manual_seed(3))
    file = save({"emb_params": vector}, tmp_path / f"EasyNegative{vectors}.safetensors")
    recipe = model.recipe(embeddings=(file,))
    cell = make_cell(recipe, prompt=f"a {file.name} cat", negative_prompt=f"bad, embedding:{file.name}")
    oracle = build_pipeline(tmp_path / "vocabulary")
    oracle.load_textual_inversion({"emb": vector}, token="ttqx")  # lower case: diffusers loses vectors of mixed-case names
    prompts = {"prompt": "a ttqx cat", "negative_prompt": "bad, ttqx"}
    ours = draw(cell, engine)
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell, oracle, **prompts))
    assert (ours != draw(make_cell(model.recipe(), prompt="a cat", negative_prompt="bad, "), engine)).any()


def test_lora_equals_merged_weights_and_diffusers_own_loader(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    layers = {"unet": attention_layers(model.pipeline.unet), "text_encoder": attention_layers(model.pipeline.text_encoder)}
    lora = kohya(layers)
    file = save(lora.tensors, tmp_path / "style.safetensors")
    cell = make_cell(model.recipe(loras=(file,)), strengths=(Strength(0.8, 0.4),))
    ours = draw(cell, engine).astype(int)
    merged = build_pipeline(tmp_path / "vocabulary")
    add_to_weights(merged.unet, lora.deltas["unet"], 0.8)
    add_to_weights(merged.text_encoder, lora.deltas["text_encoder"], 0.4)
    assert np.abs(ours - draw_with_diffusers(model, cell, merged)).max() <= 1
    # diffusers reads kohya's alphas wrongly when they differ by layer, so it is given the same LoRA without any
    live = build_pipeline(tmp_path / "vocabulary")
    live.load_lora_weights(renamed(lora, layers, (".lora_A.weight", ".lora_B.weight")).tensors, adapter_name="style")
    live.set_adapters(["style"], adapter_weights=[{"unet": 0.8, "text_encoder": 0.4}])
    assert np.abs(ours - draw_with_diffusers(model, cell, live)).max() <= 1
    assert np.abs(ours - draw(make_cell(model.recipe()), engine)).max() > 20


def test_vae_by_file_with_either_kind_of_keys(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    other = build_pipeline(tmp_path / "vocabulary", seed=4)
    original = save(original_vae(other.vae), tmp_path / "original.safetensors")
    prefixed = save({f"first_stage_model.{k}": v for k, v in original_vae(other.vae).items()}, tmp_path / "prefixed.safetensors")
    modern = save(other.vae.state_dict(), tmp_path / "modern.safetensors")
    parts = {**model.pipeline.components, "vae": other.vae}
    oracle = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    expected = draw_with_diffusers(model, make_cell(model.recipe()), oracle)
    for file in (original, prefixed, modern):
        np.testing.assert_array_equal(draw(make_cell(model.recipe(vae=file)), engine), expected, err_msg=file.name)


@pytest.mark.parametrize("prefix", ["", "text_model.", "cond_stage_model.transformer.text_model."])
def test_text_encoder_by_file(prefix: str, engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    other = build_pipeline(tmp_path / "vocabulary", seed=4).text_encoder
    file = save({prefix + key: tensor for key, tensor in other.state_dict().items()}, tmp_path / f"words{len(prefix)}.safetensors")
    oracle = diffusers.StableDiffusionPipeline(**{**model.pipeline.components, "text_encoder": other}, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    cell = make_cell(model.recipe(text_encoder=file))
    np.testing.assert_array_equal(draw(cell, engine), draw_with_diffusers(model, cell, oracle))


def test_diffusers_folder_and_half_precision_file(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    model.pipeline.save_pretrained(tmp_path / "folder")
    folder = model.recipe(checkpoint=WeightFile("folder", str(tmp_path / "folder"), "folder"), config=str(tmp_path / "folder"))
    expected = draw(make_cell(model.recipe()), engine)
    np.testing.assert_array_equal(draw(make_cell(folder), engine), expected)
    half = {key: tensor.half() for key, tensor in to_original_keys(model.pipeline).items()}
    recipe = model.recipe(checkpoint=save(half, tmp_path / "half.safetensors"))
    draw(make_cell(recipe), engine)
    assert next(engine.model.denoiser.parameters()).dtype is torch.float32


def test_v_prediction_is_taken_from_the_recipe(engine: DiffusersEngine, model: TinyModel) -> None:
    cell = make_cell(model.recipe(prediction_type="v_prediction"), sampler=SAMPLERS["ddim"])
    ours = draw(cell, engine)
    options = dict(cell.sampler.options) | {"prediction_type": "v_prediction"}
    asked = replace(cell, sampler=replace(cell.sampler, options=tuple(options.items())))
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, asked))


def test_controlnets_equal_diffusers(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    nets = [build_controlnet(model.pipeline, seed) for seed in (5, 6)]
    files = tuple(save(net.state_dict(), tmp_path / f"net{index}.safetensors") for index, net in enumerate(nets))
    pictures = [write_picture(tmp_path / f"picture{index}.png", seed=index) for index in range(2)]
    controls = (
        Control(str(pictures[0]), "0", weight=0.7),
        Control(str(pictures[1]), "1", weight=1.3, start=0.25, end=0.75),
    )
    cell = make_cell(model.recipe(controlnets=files), controls=controls)
    parts = {**model.pipeline.components, "controlnet": nets}
    oracle = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    ours = draw(cell, engine)
    with Image.open(pictures[0]) as first, Image.open(pictures[1]) as second:
        theirs = draw_with_diffusers(
            model,
            cell,
            oracle,
            image=[first.convert("RGB"), second.convert("RGB")],
            controlnet_conditioning_scale=[0.7, 1.3],
            control_guidance_start=[0.0, 0.25],
            control_guidance_end=[1.0, 0.75],
        )
    np.testing.assert_array_equal(ours, theirs)
    base = draw(make_cell(model.recipe()), engine)
    assert (ours != base).any()
    off = tuple(replace(control, weight=0.0) for control in controls)
    np.testing.assert_array_equal(draw(replace(cell, controls=off), engine), base)
