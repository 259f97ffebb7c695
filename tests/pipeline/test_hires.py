"""A hires fix is diffusers' txt2img, a resize and diffusers' img2img, on the same seeds, bit for bit at batch 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sdbatch.cell import Cell, Control, Enlarger, Hires, Source, Strength
from sdbatch.families.enlargers import ENLARGERS
from sdbatch.pipeline.decode import decode
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.engine import batch_key
from sdbatch.pipeline.prompt_editing import prompt_by_step
from tests.pipeline.models import PIXELS, TinyModel, build_controlnet, diffusers, make_cell, save, write_picture
from tests.pipeline.oracle import Pixels, draw
from tests.pipeline.test_families import latents, write_lora
from tests.pipeline.test_tasks import IMG2IMG, assert_same_alone, cell_of, oracle_of
from tests.pipeline.test_upscale import load
from tests.pipeline.upscalers import write
from tests.pipeline.zoo import ZOO, Zoo

LARGE = 96
HIRES = Hires(LARGE, LARGE, 0.6, 5, ENLARGERS["latent"], 1.5)


def hires_cell(model: TinyModel, enlarger: str | Enlarger = "latent", **changes: Any) -> Cell:
    how = ENLARGERS[enlarger] if isinstance(enlarger, str) else enlarger
    hires = replace(HIRES, enlarger=how, **changes.pop("hires", {}))
    return replace(cell_of(model, Source("", "", 1.0), **changes), source=None, hires=hires)


def draw_by_hand(model: TinyModel, cell: Cell, pipelines: Any = None, network: Any = None, inputs: Any = ({}, {})) -> Pixels:
    """Two calls of diffusers' pipelines and a resize between them."""
    assert cell.hires is not None
    first, second = pipelines or (model.pipeline, oracle_of(model, IMG2IMG[model.family]))
    config = diffusers.DDIMScheduler.load_config(str(model.config / "scheduler"))
    for pipeline in (first, second):
        pipeline.scheduler = getattr(diffusers, cell.sampler.scheduler).from_config(config, **dict(cell.sampler.options))
    common: dict[str, Any] = {"prompt": cell.prompt, "guidance_scale": cell.guidance_scale}
    common |= {"negative_prompt": cell.negative_prompt} if cell.negative_prompt else {}
    common |= {"max_sequence_length": 256} if cell.recipe.checkpoint.name.startswith("flux_schnell") else {}
    size, large = {"width": cell.width, "height": cell.height}, {"width": cell.hires.width, "height": cell.hires.height}
    in_latents = cell.hires.enlarger.interpolation != ""
    pictures: Any = first(
        **common,
        **size,
        **inputs[0],
        num_inference_steps=cell.steps,
        generator=torch.Generator().manual_seed(cell.seed),
        output_type="latent" if in_latents else "pil",
    ).images
    if in_latents:
        if model.family == "flux":
            pictures = first._unpack_latents(pictures, cell.height, cell.width, first.vae_scale_factor)  # pyright: ignore[reportPrivateUsage]
        scale = cell.height // pictures.shape[2]
        cells = (cell.hires.height // scale, cell.hires.width // scale)
        mode, antialias = cell.hires.enlarger.interpolation, cell.hires.enlarger.antialias
        given = functional.interpolate(pictures, cells, mode=mode, antialias=antialias)
    else:
        picture = pictures[0] if network is None else Image.fromarray(network.enlarge(np.asarray(pictures[0]), 512)[0])
        given = picture.resize((cell.hires.width, cell.hires.height), Image.Resampling.LANCZOS)
    images = second(
        image=given,
        **inputs[1],
        strength=cell.hires.strength,
        num_inference_steps=cell.hires.steps,
        generator=torch.Generator().manual_seed(cell.seed),
        output_type="np",
        **common,
        **(large if model.family == "flux" else {}),
    ).images
    return (images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", ENLARGERS)
def test_every_way_of_enlarging_equals_diffusers(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    cell = hires_cell(model, name)
    ours = draw(cell, engine)
    assert ours.shape == (LARGE, LARGE, 3)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_by_hand(model, cell))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("enlarger", ["latent", "lanczos"])
def test_every_family_equals_diffusers(name: str, enlarger: str, zoo: Zoo) -> None:
    model = zoo(name)
    cell = hires_cell(model, enlarger)
    np.testing.assert_array_equal(draw(cell), draw_by_hand(model, cell))


def test_a_network_enlarges_between_the_passes_and_another_afterwards(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    between, afterwards = write("compact_x4", tmp_path), replace(write("compact_x4", tmp_path / "other", seed=1), sha256="other")
    recipe = model.recipe(hires_upscaler=between)
    cell = hires_cell(model, Enlarger(between.name, between.name), recipe=recipe)
    made = draw(cell, engine)
    np.testing.assert_array_equal(made, draw_by_hand(model, cell, network=load(between)))
    assert engine.model.upscaler is None
    both = draw(replace(cell, recipe=replace(recipe, upscaler=afterwards)), engine)
    np.testing.assert_array_equal(both, load(afterwards).enlarge(made, 512)[0])
    draw(make_cell(model.recipe()), engine)
    assert engine.model.hires_upscaler is None


def test_controlnets_steer_both_passes(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    net = build_controlnet(model.pipeline)
    recipe = model.recipe(controlnets=(save(net.state_dict(), tmp_path / "net.safetensors"),))
    hint = write_picture(tmp_path / "hint.png")
    cell = hires_cell(model, "lanczos", recipe=recipe, controls=(Control(str(hint), "hint", weight=0.7),))
    classes = (diffusers.StableDiffusionControlNetPipeline, diffusers.StableDiffusionControlNetImg2ImgPipeline)
    small, large = (Image.open(hint).resize((side, side), Image.Resampling.LANCZOS) for side in (PIXELS, LARGE))
    weight = {"controlnet_conditioning_scale": 0.7}
    inputs = ({"image": small, **weight}, {"control_image": large, **weight})
    pipelines = [oracle_of(model, cls, controlnet=net) for cls in classes]
    np.testing.assert_array_equal(draw(cell, engine), draw_by_hand(model, cell, pipelines, inputs=inputs))


def test_what_is_too_much_of_one_side_is_cut(engine: DiffusersEngine, model: TinyModel) -> None:
    wide = {"width": LARGE, "height": PIXELS, "strength": 0.0, "scale": None}
    whole, cut = (latents(engine, [hires_cell(model, hires=change)]) for change in ({"strength": 0.0}, wide))
    rows = (whole.shape[2] - cut.shape[2]) // 2
    assert rows > 0
    torch.testing.assert_close(cut, whole[:, :, rows:-rows], rtol=0, atol=0)
    assert draw(hires_cell(model, "lanczos", hires=wide), engine).shape == (PIXELS, LARGE, 3)


def test_a_strength_that_runs_no_step_is_the_enlargement(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    cell = hires_cell(model, "latent_nearest_exact", hires={"width": 2 * PIXELS, "height": 2 * PIXELS, "strength": 0.1})
    large = latents(engine, [replace(cell, hires=None)]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    np.testing.assert_array_equal(draw(cell, engine), decode(engine.model.vae, large, 1)[0][0].numpy())
    # With pixels it is img2img's picture itself, which goes through the VAE once.
    Image.fromarray(draw(replace(cell, hires=None, upscale=1.5), engine)).save(tmp_path / "large.png")
    itself = replace(cell, hires=None, width=LARGE, height=LARGE, source=Source(str(tmp_path / "large.png"), "large", 0.0))
    np.testing.assert_array_equal(draw(hires_cell(model, "lanczos", hires={"strength": 0.1}), engine), draw(itself, engine))


def test_one_batch_of_different_images_equals_separate_runs(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    recipe = model.recipe(loras=(write_lora(model, tmp_path),))
    for name in ("latent", "lanczos"):
        cells = [
            hires_cell(model, name, recipe=recipe, seed=1, strengths=(Strength(0.8, 0.4),)),
            hires_cell(model, name, recipe=recipe, seed=2, strengths=(Strength(0.0, 0.0),), guidance_scale=1.0),
            hires_cell(model, name, recipe=recipe, seed=3, strengths=(Strength(-0.5, 1.0),), prompt="red " * 90),
        ]
        # A last bit that differs may round a pixel between the passes to its neighbour.
        assert_same_alone(engine, cells, tolerance=1e-4 if name == "latent" else 1e-3)


def test_what_cannot_share_a_batch(model: TinyModel) -> None:
    changes = ({}, {"strength": 0.5}, {"steps": 6}, {"width": 128}, {"enlarger": ENLARGERS["lanczos"]})
    cells = [replace(make_cell(model.recipe()), hires=replace(HIRES, **change)) for change in changes]
    assert len({batch_key(cell) for cell in [make_cell(model.recipe()), *cells]}) == len(cells) + 1


def test_the_larger_pass_decides_the_batch(engine: DiffusersEngine, model: TinyModel) -> None:
    small, large = make_cell(model.recipe(), width=256, height=256), make_cell(model.recipe(), width=512, height=512)
    hires = replace(small, hires=replace(HIRES, width=512, height=512))
    assert engine.auto_batch_size(hires) == engine.auto_batch_size(large) < engine.auto_batch_size(small)


@pytest.mark.parametrize("name", ["latent", "lanczos"])
def test_what_is_lost_in_the_first_pass_is_not_made_up_in_the_second(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    cell = hires_cell(model, name)
    engine.prepare(cell.recipe)

    def poison(module: Any, args: Any, output: Any) -> Any:
        del module
        return (output[0] * float("nan"),) if args[0].shape[-1] == small else output

    small = latents(engine, [replace(cell, hires=None)]).shape[-1]
    handle = engine.model.denoiser.register_forward_hook(poison)
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    handle.remove()
    assert picture.fault == "nan"


def test_the_steps_of_both_passes_are_counted(engine: DiffusersEngine, model: TinyModel) -> None:
    beats: list[tuple[int, int]] = []
    cell = hires_cell(model)
    engine.prepare(cell.recipe)
    engine.start([cell], lambda done, total: beats.append((done, total)))
    assert beats == [(step, 8) for step in range(1, 9)], "five, and three fifths of five"


def test_a_prompt_that_changes_counts_on_in_the_second_pass(engine: DiffusersEngine, model: TinyModel) -> None:
    assert "".join(prompt_by_step("[a:b:0.5]", 4, 3)) == "aabbbbb"
    assert "".join(prompt_by_step("[a:b:1.5]", 4, 4)) == "".join(prompt_by_step("[a:b:6]", 4, 4)) == "aaaaaabb"
    assert "".join(prompt_by_step("[a|b]", 3, 3)) == "abaaba", "as in A1111 each pass begins with the first"
    cat, changed, dog = (latents(engine, [hires_cell(model, prompt=text)]) for text in ("a cat", "a [cat:dog:1.0]", "a dog"))
    assert not torch.equal(changed, cat)
    assert not torch.equal(changed, dog)
    base = [latents(engine, [replace(hires_cell(model, prompt=text), hires=None)]) for text in ("a cat", "a [cat:dog:1.0]")]
    torch.testing.assert_close(*base, rtol=0, atol=0)
