"""Adapters through the engine: each image of a batch has its own strengths, and a recipe without them is as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdbatch.cell import Strength, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.adapters.lora_files import attention_layers, kohya
from tests.adapters.table_files import in_form
from tests.adapters.test_hypernetwork import CASES, write
from tests.pipeline.models import WIDTH, TinyModel, make_cell, save
from tests.pipeline.test_engine import latents


def test_every_kind_in_one_mixed_batch_equals_the_images_one_by_one(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    layers = {"unet": attention_layers(model.pipeline.unet), "text_encoder": attention_layers(model.pipeline.text_encoder)}
    style = save(kohya(layers).tensors, tmp_path / "mixed_style.safetensors")
    dora = save(in_form(model.pipeline, "DoRA").tensors, tmp_path / "mixed_dora.safetensors")
    hyper, _ = write(tmp_path / "mixed_hyper.pt", CASES["relu"])
    bare = make_cell(model.recipe(), prompt="a red cat")
    before = latents(engine, [bare])
    recipe = model.recipe(loras=(style, dora), hypernetworks=(hyper,))
    rows = [
        ((Strength(0.4, 0.2), Strength(0.5, 0.5)), (0.5,)),
        ((Strength(0.4, 0.2, "OUTALL"), Strength(0.5, 0.5)), (0.5,)),
        ((Strength(0.4, 0.2, "NONE"), Strength(0, 0)), (0.0,)),
        ((Strength(0.2, 0.4), Strength(1, 1)), (-0.5,)),
        ((Strength(0, 0), Strength(0, 0)), (0.0,)),
    ]
    cells = [make_cell(recipe, prompt="a red cat", strengths=one, hypernetwork_weights=two) for one, two in rows]
    together = latents(engine, cells)
    alone = torch.cat([latents(engine, [cell]) for cell in cells])
    assert float((together - alone).abs().max() / alone.std()) < 1e-4
    differing = [(together[a] - together[b]).abs().max() > 0.01 for a in range(4) for b in range(a)]
    assert all(differing)
    assert (alone[2] - alone[4]).abs().max() < 1e-3, "block weights of 0 are strength 0, but for the layers outside of all blocks"
    assert torch.equal(alone[4:], before), "strength 0 is no adapter"
    assert torch.equal(latents(engine, [bare]), before), "detached, nothing is left"


def test_an_embedding_answers_to_its_option_name_and_to_its_file_s_own(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    file = save({"emb_params": torch.randn(3, WIDTH)}, tmp_path / "bad.hands v1.3.safetensors")
    recipe = model.recipe(embeddings=(WeightFile("bad_hands_v1_3", file.path, "embedding with dots"),))
    words = ("bad_hands_v1_3", "bad.hands v1.3", "embedding:Bad_Hands_v1_3", "bad.hands v1.3.safetensors")
    prompts = [f"a cat, {word}" for word in words]
    made = latents(engine, [make_cell(recipe, prompt="a cat", negative_prompt=prompt) for prompt in prompts])
    assert all(torch.equal(made[0], other) for other in made[1:])
    assert not torch.equal(made[0], latents(engine, [make_cell(recipe, prompt="a cat", negative_prompt="a cat, bad.hands")])[0])


def test_a_strict_lora_of_which_a_part_fits_nothing_is_refused(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    tensors = kohya({"unet": attention_layers(model.pipeline.unet)}).tensors | {"stray": torch.zeros(1)}
    recipe = model.recipe(loras=(save(tensors, tmp_path / "stray_style.safetensors"),))
    engine.prepare(recipe)
    with pytest.raises(WeightFileError, match="nothing in the model is called stray"):
        engine.prepare(replace(recipe, strict_loras=("stray_style",)))
