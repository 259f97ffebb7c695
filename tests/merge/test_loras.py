"""LoRAs baked into a checkpoint or merged into one LoRA do what they do live."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdbatch.cell import Cell, Recipe, Strength, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.families import SAMPLERS
from sdbatch.merge.checkpoint import Order, make_checkpoint
from sdbatch.merge.lora import LoraOrder, make_lora
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.weights.catalog import embedded_root
from tests.merge.conftest import quiet, weight_file
from tests.pipeline.zoo import Zoo


@pytest.fixture(scope="module")
def engine() -> DiffusersEngine:
    return DiffusersEngine("cpu", 1)


def lora(name: str) -> WeightFile:
    return weight_file(embedded_root() / f"loras/{name}.safetensors")


def draw(engine: DiffusersEngine, checkpoint: WeightFile, *loras: tuple[WeightFile, float]) -> npt.NDArray[np.int16]:
    config = str(embedded_root() / "checkpoints/tiny_diffusers")
    recipe = Recipe("sd1", config, checkpoint, loras=tuple(file for file, _ in loras))
    strengths = tuple(Strength(weight, weight) for _, weight in loras)
    cell = Cell("0" * 32, recipe, "a red fox", "", 1, SAMPLERS["euler"], 8, 2.5, 128, 128, strengths=strengths)
    engine.prepare(recipe)
    return engine.start([cell], lambda done, total: None).finish()[0].pixels.astype(np.int16)


def distance(one: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> float:
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("name", ["style_a", "pixel_locon", "sepia_loha"])
def test_a_baked_lora_draws_as_a_live_one(name: str, engine: DiffusersEngine, tiny: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "baked.safetensors"
    make_checkpoint(Order(tiny, out, loras=((lora(name), Strength(0.8, 0.8)),), dtype="float32"), quiet)
    live, baked, plain = draw(engine, tiny, (lora(name), 0.8)), draw(engine, weight_file(out)), draw(engine, tiny)
    assert distance(live, plain) > 1
    assert distance(live, baked) < 0.05


def test_two_baked_at_their_strengths(engine: DiffusersEngine, tiny: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "baked.safetensors"
    loras = ((lora("style_a"), Strength(0.6, 0.6)), (lora("style_b"), Strength(0.4, 0.4)))
    make_checkpoint(Order(tiny, out, loras=loras, dtype="float32"), quiet)
    live = draw(engine, tiny, (lora("style_a"), 0.6), (lora("style_b"), 0.4))
    assert distance(live, draw(engine, weight_file(out))) < 0.05


def test_two_loras_become_one_that_does_the_same(engine: DiffusersEngine, tiny: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "both.safetensors"
    make_lora(LoraOrder(((lora("style_a"), Strength(0.6, 0.6)), (lora("style_b"), Strength(0.4, 0.4))), out, dtype="float32"), quiet)
    live = draw(engine, tiny, (lora("style_a"), 0.6), (lora("style_b"), 0.4))
    assert distance(live, draw(engine, tiny, (weight_file(out), 1.0))) < 0.05
    assert {tensor.shape[0] for name, tensor in load_file(out).items() if name.endswith("lora_down.weight")} == {16}


def test_a_smaller_rank_is_the_nearest_there_is(engine: DiffusersEngine, tiny: WeightFile, tmp_path: Path) -> None:
    whole = draw(engine, tiny, (lora("style_a"), 1.0), (lora("sepia_loha"), 1.0))
    found: list[float] = []
    for rank in (2, 16, 64):
        out = tmp_path / f"{rank}.safetensors"
        make_lora(LoraOrder(((lora("style_a"), Strength()), (lora("sepia_loha"), Strength())), out, rank), quiet)
        assert max(tensor.shape[0] for name, tensor in load_file(out).items() if name.endswith("lora_down.weight")) <= rank
        found.append(distance(whole, draw(engine, tiny, (weight_file(out), 1.0))))
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.6


def test_a_full_rank_sum_needs_a_rank(tmp_path: Path) -> None:
    module = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = load_file(lora("style_a").path)
    width, *rest = tensors[f"{module}.lora_down.weight"].shape[1:]
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(module)}
    full = tmp_path / "full.safetensors"
    save_file({**others, f"{module}.diff": torch.randn(width, width, *rest)}, full)
    with pytest.raises(WeightFileError, match=r"full rank in one of the files.*rank=32"):
        make_lora(LoraOrder(((lora("style_a"), Strength()), (weight_file(full), Strength())), tmp_path / "new.safetensors"), quiet)


def test_a_lora_of_another_model_is_not_baked(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="style_a"):
        make_checkpoint(Order(zoo("sd1").checkpoint, tmp_path / "new.safetensors", loras=((lora("style_a"), Strength()),)), quiet)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_bias_that_the_checkpoint_has_no_place_for_is_not_lost_in_silence(tiny: WeightFile, tmp_path: Path) -> None:
    weight = next(
        tensor for name, tensor in load_file(tiny.path).items() if name.endswith("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight")
    )
    save_file(
        {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.diff_b": torch.ones(weight.shape[0])}, tmp_path / "bias.safetensors"
    )
    with pytest.raises(WeightFileError, match=r"lora\.bias: unet\.down_blocks.*to_q has no bias in the checkpoint"):
        make_checkpoint(Order(tiny, tmp_path / "new.safetensors", loras=((weight_file(tmp_path / "bias.safetensors"), Strength()),)), quiet)


def test_what_is_no_lora_is_told_so(tiny: WeightFile, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"tiny: is a checkpoint for .*, not a LoRA"):
        make_lora(LoraOrder(((tiny, Strength()), (lora("style_a"), Strength())), tmp_path / "new.safetensors"), quiet)


def test_baking_keeps_the_checkpoint_s_own_numbers_where_nothing_is_added(tiny: WeightFile, tmp_path: Path) -> None:
    out = tmp_path / "baked.safetensors"
    make_checkpoint(Order(tiny, out, loras=((lora("style_a"), Strength(1, 0)),)), quiet)
    before, after = load_file(tiny.path), load_file(out)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("model.diffusion_model.") and name.endswith("weight") for name in changed)
