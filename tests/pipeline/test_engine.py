"""The engine's contract: mixed batches, the least work between recipes, faults, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sdbatch.cell import Cell, Control, Picture, Strength
from sdbatch.errors import CellError, ConfigError, WeightFileError
from sdbatch.families import FAMILIES, SAMPLERS
from sdbatch.pipeline.build import build_engine
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.engine import OutOfMemory, batch_key
from tests.adapters.lora_files import attention_layers, conv_layers, kohya
from tests.pipeline.models import (
    TinyModel,
    build_controlnet,
    build_pipeline,
    make_cell,
    original_vae,
    save,
    to_original_keys,
    write_picture,
)


def no_beat(done: int, total: int) -> None:
    """A heartbeat that nobody listens to."""


def make(engine: DiffusersEngine, cells: Sequence[Cell]) -> list[Picture]:
    engine.prepare(cells[0].recipe)
    return engine.start(cells, no_beat).finish()


def latents(engine: DiffusersEngine, cells: Sequence[Cell]) -> torch.Tensor:
    """The denoised latents in the order of the cells: finer than pixels."""
    engine.prepare(cells[0].recipe)
    batch = engine.start(cells, no_beat)
    rows = {slot: group.latents[row] for group in batch.groups for row, slot in enumerate(group.slots)}
    return torch.stack([rows[slot] for slot in range(len(cells))])


def assert_same_alone(engine: DiffusersEngine, cells: Sequence[Cell], tolerance: float = 1e-4) -> None:
    together = latents(engine, cells)
    alone = torch.cat([latents(engine, [cell]) for cell in cells])
    assert float(alone.std()) > 0.3
    assert len({tuple(row.flatten().tolist()) for row in alone}) == len(cells)
    assert float((together - alone).abs().max() / alone.std()) < tolerance


@pytest.fixture(scope="module")
def stacked(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files for a recipe with everything: two LoRAs, an embedding, a ControlNet."""
    folder = tmp_path_factory.mktemp("stack")
    pipeline = model.pipeline
    both = {"unet": attention_layers(pipeline.unet), "text_encoder": attention_layers(pipeline.text_encoder)}
    first, second = kohya(both, seed=1), kohya({"unet": conv_layers(pipeline.unet)}, seed=2)
    return {
        "loras": (save(first.tensors, folder / "first.safetensors"), save(second.tensors, folder / "second.safetensors")),
        "embeddings": (save({"emb_params": torch.randn(2, 32)}, folder / "style.safetensors"),),
        "controlnets": (save(build_controlnet(pipeline).state_dict(), folder / "edges.safetensors"),),
    }


def controls(folder: Path, seed: int, weight: float = 1.0, end: float = 1.0) -> tuple[Control, ...]:
    path = write_picture(folder / f"{seed}.png", seed)
    return (Control(str(path), str(seed), weight=weight, end=end),)


def test_one_batch_of_different_everything_equals_separate_runs(
    engine: DiffusersEngine, model: TinyModel, stacked: dict[str, Any], tmp_path: Path
) -> None:
    recipe = model.recipe(**stacked)
    cells = [
        make_cell(recipe, seed=1, strengths=(Strength(0.5, 0.2), Strength(1.0)), controls=controls(tmp_path, 1)),
        make_cell(
            recipe,
            seed=2,
            prompt="a (blue:1.4) style dog",
            negative_prompt="bad",
            guidance_scale=1.0,
            strengths=(Strength(0.0, 0.0), Strength(-0.4)),
            controls=controls(tmp_path, 2, weight=0.4, end=0.5),
        ),
        make_cell(
            recipe, seed=3, guidance_scale=9.5, clip_skip=2, strengths=(Strength(1.0), Strength(0.0)), controls=controls(tmp_path, 1, 0.0)
        ),
        make_cell(recipe, seed=4, prompt="red " * 90, strengths=(Strength(0.3, 1.0), Strength(0.3)), controls=controls(tmp_path, 3)),
        make_cell(
            recipe,
            seed=5,
            prompt="a [red:blue:0.5] [cat|dog]",
            negative_prompt="[bad::1]",
            guidance_rescale=0.6,
            strengths=(Strength(0.3, 1.0), Strength(0.3)),
            controls=controls(tmp_path, 3),
        ),
    ]
    assert len({batch_key(cell) for cell in cells}) == 1
    assert_same_alone(engine, cells)


@pytest.mark.parametrize("name", FAMILIES["sd1"].samplers)
def test_every_sampler_alone_in_a_mixed_batch_and_again(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    cells = [make_cell(model.recipe(), seed=seed, sampler=SAMPLERS[name], guidance_scale=2.0 + seed, steps=3) for seed in (5, 6)]
    assert_same_alone(engine, cells, 1e-3)
    assert torch.equal(latents(engine, cells), latents(engine, cells))
    assert torch.equal(latents(engine, cells), latents(engine, cells[::-1]).flip(0))


def test_prompts_of_other_lengths_do_not_touch_an_image(engine: DiffusersEngine, model: TinyModel) -> None:
    short, long = make_cell(model.recipe(), seed=1), make_cell(model.recipe(), seed=2, prompt="red " * 80)
    assert torch.equal(latents(engine, [short, long])[0], latents(engine, [short])[0])
    beats: list[tuple[int, int]] = []
    pictures = engine.start([long, short, long], lambda done, total: beats.append((done, total))).finish()
    assert [picture.cell for picture in pictures] == [long, short, long]
    assert [(picture.facts["batch_size"], picture.facts["batch_slot"]) for picture in pictures] == [(2, 0), (1, 0), (2, 1)]
    assert beats == [(done, 8) for done in range(1, 9)]


def test_facts(engine: DiffusersEngine, model: TinyModel, stacked: dict[str, Any]) -> None:
    (picture,) = make(engine, [make_cell(model.recipe(loras=stacked["loras"]))])
    facts = picture.facts
    assert (facts["device"], facts["dtype"], facts["threads"], facts["retried_fp32"]) == ("cpu", "float32", 1, False)
    assert set(facts["versions"]) == {"sdbatch", "torch", "diffusers", "transformers"}
    assert all(applied == total > 0 for applied, total in facts["applied_keys"].values())
    assert list(facts["applied_keys"]) == ["first", "second"]
    assert facts["denoise_s"] > 0 < facts["decode_s"]


def test_seconds_of_a_batch_are_shared_by_its_images(engine: DiffusersEngine, model: TinyModel) -> None:
    begun = time.perf_counter()
    pictures = make(engine, [make_cell(model.recipe(), seed=seed) for seed in range(8)])
    spent_s = time.perf_counter() - begun
    told_s = sum(picture.facts[name] for picture in pictures for name in ("encode_s", "denoise_s", "decode_s"))
    assert spent_s / 2 < told_s < spent_s


def test_what_is_equal_is_kept_and_what_differs_is_swapped(
    engine: DiffusersEngine, model: TinyModel, stacked: dict[str, Any], tmp_path: Path
) -> None:
    other_vae = save(original_vae(build_pipeline(tmp_path / "vocabulary", 4).vae), tmp_path / "soft.safetensors")
    base = make(engine, [make_cell(model.recipe())])[0].pixels
    unet, vae = engine.model.denoiser, engine.model.vae
    engine.prepare(model.recipe(vae=other_vae))
    assert engine.model.denoiser is unet
    assert engine.model.vae is not vae
    engine.prepare(model.recipe(**stacked))
    assert engine.model.denoiser is unet
    net = engine.model.controlnets[0]
    stack = engine.model.stack("unet")
    engine.prepare(model.recipe(**stacked, vae=other_vae))
    assert engine.model.stack("unet") is stack
    engine.prepare(model.recipe(controlnets=stacked["controlnets"]))
    assert engine.model.controlnets[0] is net
    np.testing.assert_array_equal(make(engine, [make_cell(model.recipe())])[0].pixels, base)


def test_a_lora_goes_to_the_next_checkpoint_too(engine: DiffusersEngine, model: TinyModel, stacked: dict[str, Any], tmp_path: Path) -> None:
    other = build_pipeline(tmp_path / "vocabulary", 8)
    checkpoint = save(to_original_keys(other), tmp_path / "other.safetensors")
    engine.prepare(model.recipe(loras=stacked["loras"]))
    with_lora, without = (make_cell(model.recipe(checkpoint=checkpoint, loras=loras)) for loras in (stacked["loras"], ()))
    ours = make(engine, [with_lora])[0].pixels
    np.testing.assert_array_equal(ours, make(DiffusersEngine("cpu", 1), [with_lora])[0].pixels)
    assert (ours != make(engine, [without])[0].pixels).any()


def test_a_failed_prepare_leaves_nothing_and_the_next_one_works(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    base = make(engine, [make_cell(model.recipe())])[0].pixels
    wrong = save({"lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)}, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightFileError):
        engine.prepare(model.recipe(loras=(wrong,)))
    assert engine.model.recipe is None
    np.testing.assert_array_equal(make(engine, [make_cell(model.recipe())])[0].pixels, base)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.diffusion_model.middle_block.0.in_layers.0.weight", r"\(unet\): 1 keys are missing \(first mid_block\.resnets\.0\.norm1"),
        ("cond_stage_model.transformer.", r"it has no text_encoder \(cond_stage_model"),
        ("first_stage_model.", r"it has no vae"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(drop: str, message: str, model: TinyModel, tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in to_original_keys(model.pipeline).items() if not key.startswith(drop)}
    with pytest.raises(WeightFileError, match=message):
        DiffusersEngine("cpu", 1).prepare(model.recipe(checkpoint=save(tensors, tmp_path / "partial.safetensors")))


def test_a_checkpoint_of_another_size_is_refused(model: TinyModel, tmp_path: Path) -> None:
    tensors = to_original_keys(model.pipeline)
    tensors["model.diffusion_model.out.2.weight"] = torch.ones(4, 99, 3, 3)
    with pytest.raises(WeightFileError, match=r"conv_out\.weight has the shape .*, by the model's config it should have"):
        DiffusersEngine("cpu", 1).prepare(model.recipe(checkpoint=save(tensors, tmp_path / "odd.safetensors")))


def test_modules_are_in_eval_mode_and_have_no_gradients(engine: DiffusersEngine) -> None:
    for module in (engine.model.denoiser, engine.model.vae):
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())


def test_other_dtypes(engine: DiffusersEngine, model: TinyModel) -> None:
    full, half = (make(engine, [make_cell(model.recipe(dtype=dtype))])[0] for dtype in ("float32", "bfloat16"))
    assert half.facts["dtype"] == "bfloat16"
    assert half.fault is None
    assert 0 < np.abs(full.pixels.astype(int) - half.pixels.astype(int)).mean() < 20
    with pytest.raises(ConfigError, match=r"dtype: there is no 'fp8'"):
        engine.prepare(model.recipe(dtype="fp8"))


def _break_unet(engine: DiffusersEngine, when: Callable[[torch.dtype], bool]) -> Any:
    """A hook that makes the UNet's answer not finite for some dtypes."""

    def poison(module: Any, args: Any, output: Any) -> Any:
        del module, args
        return (output[0] * float("nan"),) if when(output[0].dtype) else output

    return engine.model.denoiser.register_forward_hook(poison)


def test_nan_in_half_precision_is_tried_again_in_float32(engine: DiffusersEngine, model: TinyModel) -> None:
    recipe = model.recipe(dtype="bfloat16")
    engine.prepare(recipe)
    handle = _break_unet(engine, lambda dtype: dtype is not torch.float32)
    try:
        pictures = make(engine, [make_cell(recipe, seed=seed) for seed in (1, 2)])
    finally:
        handle.remove()
    assert [picture.fault for picture in pictures] == [None, None]
    assert all(picture.facts["retried_fp32"] and picture.facts["dtype"] == "float32" for picture in pictures)
    assert next(engine.model.denoiser.parameters()).dtype is torch.bfloat16
    assert not make(engine, [make_cell(recipe)])[0].facts["retried_fp32"]


def test_nan_that_stays_and_one_colour_are_faults(engine: DiffusersEngine, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in (model.recipe(), model.recipe(dtype="bfloat16")):
        engine.prepare(recipe)
        handle = _break_unet(engine, lambda dtype: True)
        (picture,) = make(engine, [make_cell(recipe)])
        handle.remove()
        assert picture.fault == "nan"
    engine.prepare(model.recipe())
    vae: Any = engine.model.vae

    def paint(x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0], 3, *x.shape[2:]), 0.3)

    monkeypatch.setattr(vae.decoder.conv_out, "forward", paint)
    (picture,) = make(engine, [make_cell(model.recipe())])
    assert picture.fault == "flat"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_is_one_kind_of_error(
    error: Exception, engine: DiffusersEngine, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make_cell(model.recipe(), seed=seed) for seed in (1, 2)]
    engine.prepare(model.recipe())

    def fail(*args: Any, **kwargs: Any) -> npt.NDArray[np.uint8]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.denoiser, "forward", fail)
        with pytest.raises(OutOfMemory, match="a batch of 2 did not fit the memory of cpu") as caught:
            engine.start(cells, no_beat)
    assert isinstance(caught.value, CellError)
    assert caught.value.__context__ is None, "the frames of the failed call must be free"
    assert len(engine.start(cells[:1], no_beat).finish()) == 1


def test_other_errors_pass_through(engine: DiffusersEngine, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.prepare(model.recipe())

    def fail(*args: Any, **kwargs: Any) -> float:
        return 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.denoiser, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            engine.start([make_cell(model.recipe())], no_beat)


def test_unknown_options_and_impossible_steps(engine: DiffusersEngine, model: TinyModel) -> None:
    typo = replace(SAMPLERS["euler"], options=(("use_karas_sigmas", True),))
    with pytest.raises(ConfigError, match=r"sampler\.options\.use_karas_sigmas: euler .* Did you mean use_karras_sigmas"):
        make(engine, [make_cell(model.recipe(), sampler=typo)])
    with pytest.raises(CellError, match="sampler lcm cannot be set up for 60 steps"):
        make(engine, [make_cell(model.recipe(), sampler=SAMPLERS["lcm"], steps=60)])


def test_auto_batch_size_shrinks_with_the_picture(engine: DiffusersEngine, model: TinyModel) -> None:
    sizes = [engine.auto_batch_size(make_cell(model.recipe(), width=px, height=px)) for px in (64, 128, 512, 1024, 2048)]
    assert sizes == [16, 16, 4, 1, 1]


def test_build_engine_gives_this_one() -> None:
    assert isinstance(build_engine("diffusers", "cpu", 1), DiffusersEngine)
