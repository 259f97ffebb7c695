"""IP-Adapters make what diffusers' own make, and nothing when their weight is 0 or they are taken off."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbatch.adapters.ip_adapter import load_ip_adapter
from sdbatch.cell import Cell, Control, ImagePrompt, Strength
from sdbatch.errors import CellError, WeightFileError
from sdbatch.families import SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.adapters.ip_adapter_files import KINDS, Prepared, build_ip_adapter, open_picture, prepare, save_ip_adapter
from tests.adapters.lora_files import attention_layers, kohya
from tests.adapters.test_hypernetwork import CASES, write
from tests.pipeline.models import TinyModel, build_controlnet, diffusers, make_cell, save, write_picture
from tests.pipeline.test_engine import assert_same_alone, latents
from tests.pipeline.zoo import Zoo


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return [write_picture(tmp_path / f"picture{seed}.png", seed, size=50 + 10 * seed) for seed in range(3)]


@contextmanager
def loaded(model: TinyModel, files: Prepared, weights: list[float]) -> Generator[Any]:
    """diffusers' own pipeline with the IP-Adapters, taken off again at the end."""
    pipeline = model.pipeline
    files.load_into(pipeline, weights)
    try:
        yield pipeline
    finally:
        pipeline.unload_ip_adapter()


def shown(paths: list[Path], *weights: float) -> tuple[ImagePrompt, ...]:
    return tuple(ImagePrompt(str(path), path.name, weight) for path, weight in zip(paths, weights, strict=False))


def cell_of(model: TinyModel, files: Prepared, prompts: tuple[ImagePrompt, ...], **changes: Any) -> Cell:
    recipe = model.recipe(ip_adapters=files.adapters, image_encoders=(files.encoder,), **changes.pop("recipe", {}))
    return make_cell(recipe, **{"sampler": SAMPLERS["euler"], "steps": 3, "negative_prompt": "bad", "image_prompts": prompts, **changes})


def latents_by_diffusers(model: TinyModel, cell: Cell, **inputs: Any) -> torch.Tensor:
    pipeline, sampler = model.pipeline, cell.sampler
    cls = getattr(diffusers, sampler.scheduler)
    pipeline.scheduler = cls.from_config(cls.load_config(str(model.config / "scheduler")), **dict(sampler.options))
    settings = {"num_inference_steps": cell.steps, "guidance_scale": cell.guidance_scale, "width": cell.width, "height": cell.height}
    prompts = {"prompt": cell.prompt, "negative_prompt": cell.negative_prompt}
    generator = torch.Generator().manual_seed(cell.seed)
    return pipeline(**prompts, **settings, generator=generator, output_type="latent", **inputs).images


def align(engine: DiffusersEngine) -> None:
    """Have every weight begin where torch would put it: matrix products of a mapped file differ in the last bit."""
    stack = engine.model.ip_adapters
    assert stack is not None
    modules = [*engine.model.components.values(), *stack.adapters, *(encoder.module for encoder in stack.encoders)]
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), ("plain", "plus")], ids="+".join)
def test_equals_diffusers(
    name: str, kinds: tuple[str, ...], zoo: Zoo, engine: DiffusersEngine, pictures: list[Path], tmp_path: Path
) -> None:
    model, weights = zoo(name), [0.7, 1.2][: len(kinds)]
    files = prepare(model, kinds, tmp_path)
    guided = cell_of(model, files, shown(pictures, *weights), guidance_scale=4.0)
    cells = [guided, replace(guided, guidance_scale=1.0)]
    engine.prepare(guided.recipe)
    align(engine)
    ours = [latents(engine, [cell]) for cell in cells]
    given = [open_picture(path) for path in pictures[: len(kinds)]]
    with loaded(model, files, weights):
        theirs = [latents_by_diffusers(model, cell, ip_adapter_image=given) for cell in cells]
    bare = latents_by_diffusers(model, guided)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert float((one - bare).std() / bare.std()) > 0.05


def test_a_mixed_batch_equals_the_images_one_by_one(engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plain", "plus"), tmp_path)
    first, second, third = pictures
    shows = [
        shown([first, second], 0.7, 0.5),
        shown([second, first], 0.7, 0.5),
        shown([third, third], 1.5, 0.0),
        shown([third, third], -0.5, 2.0),
        tuple(replace(prompt, start=0.5) for prompt in shown([first, first], 1.0, 1.0)),
        tuple(replace(prompt, end=0.5) for prompt in shown([first, first], 1.0, 1.0)),
        shown([first, second], 0.0, 0.0),
    ]
    cells = [cell_of(model, files, prompts, steps=4, seed=seed, guidance_scale=3.0 + seed) for seed, prompts in enumerate(shows)]
    assert_same_alone(engine, cells)
    assert_same_alone(engine, [replace(cell, guidance_scale=1.0) for cell in cells])


def test_without_weight_or_taken_off_nothing_is_left(engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plain", "plus"), tmp_path)
    bare = make_cell(model.recipe(), steps=3)
    before = latents(engine, [bare])
    cell = cell_of(model, files, shown(pictures, 0.0, 0.0), negative_prompt="")
    assert torch.equal(latents(engine, [cell]), before)
    strong = replace(cell, image_prompts=shown(pictures, 1.0, 1.0))
    beside = latents(engine, [strong, cell])[1:]
    assert torch.equal(beside, latents(engine, [replace(strong, recipe=bare.recipe, image_prompts=()), bare])[1:])
    assert not torch.equal(latents(engine, [strong]), before)
    unet: Any = engine.model.denoiser
    attached = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())
    assert attached == 2 * 2 * 2
    assert torch.equal(latents(engine, [bare]), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_windows_are_those_of_the_steps(engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plain",), tmp_path)
    cell = cell_of(model, files, shown(pictures, 1.0), steps=4, guidance_scale=1.0)
    active: list[bool] = []
    engine.prepare(cell.recipe)
    stack = engine.model.ip_adapters
    assert stack is not None
    (prompt,) = cell.image_prompts
    stack.set_prompts([(replace(prompt, start=0.25, end=0.75),)], is_guided=False)
    for step in range(4):
        stack.set_step((step, 4))
        active.append(bool(stack.active))
    assert active == [False, True, True, False]


def test_every_adapter_there_is_in_one_batch(engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plus",), tmp_path)
    layers = {"unet": attention_layers(model.pipeline.unet)}
    hyper, _ = write(tmp_path / "hyper.pt", CASES["relu"])
    parts = {
        "loras": (save(kohya(layers).tensors, tmp_path / "style.safetensors"),),
        "hypernetworks": (hyper,),
        "controlnets": (save(build_controlnet(model.pipeline).state_dict(), tmp_path / "edges.safetensors"),),
    }
    rows = [(0.5, 0.7, 0.3, 1.0), (0.0, 0.7, 0.3, 1.0), (0.5, 0.0, 0.3, 1.0), (0.5, 0.7, 0.0, 1.0), (0.5, 0.7, 0.3, 0.0)]
    cells = [
        cell_of(
            model,
            files,
            shown(pictures, seen),
            recipe=parts,
            strengths=(Strength(style, style),),
            hypernetwork_weights=(hypernetwork,),
            controls=(Control(str(pictures[1]), "1", weight=edges),),
        )
        for style, seen, edges, hypernetwork in rows
    ]
    assert_same_alone(engine, cells)
    recipe = cells[0].recipe
    alone = latents(engine, cells[:1])
    engine.prepare(replace(recipe, loras=()))
    assert torch.equal(latents(engine, cells[:1]), alone), "put on again, it is the same"


def test_files_stay_in_memory_and_a_picture_is_looked_at_once(
    engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path
) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plain", "plus"), tmp_path)
    cells = [cell_of(model, files, shown([path, path], 1.0, 1.0), seed=index) for index, path in enumerate([*pictures[:2], pictures[0]])]
    engine.prepare(cells[0].recipe)
    stack = engine.model.ip_adapters
    assert stack is not None
    encoder = stack.encoders[0]
    assert encoder is stack.encoders[1]
    encoder.forget()  # the session's engine may have met these pictures before
    looks: list[Any] = []
    encoder.module.register_forward_hook(lambda module, args, output: looks.append(args))
    latents(engine, cells)
    latents(engine, cells[:1])
    assert len(looks) == 3, "two pictures, and none"
    engine.prepare(replace(cells[0].recipe, ip_adapters=files.adapters[:1]))
    changed = engine.model.ip_adapters
    assert changed is not None
    assert (changed.adapters[0], changed.encoders[0]) == (stack.adapters[0], encoder)
    engine.prepare(model.recipe())
    assert engine.model.ip_adapters is None


def test_float32_for_a_while(engine: DiffusersEngine, zoo: Zoo, pictures: list[Path], tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plus",), tmp_path)
    cell = cell_of(model, files, shown(pictures, 1.0), recipe={"dtype": "bfloat16"})
    rough = latents(engine, [cell])
    with engine.model.in_float32():
        fine = latents(engine, [cell])
    exact = latents(engine, [replace(cell, recipe=replace(cell.recipe, dtype="float32"))])
    assert float((fine - exact).abs().max()) < float((rough - exact).abs().max())
    assert torch.equal(latents(engine, [cell]), rough)


def test_a_file_that_is_no_picture_fails_its_cell(engine: DiffusersEngine, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sd1")
    files = prepare(model, ("plain",), tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    cell = cell_of(model, files, (ImagePrompt(str(tmp_path / "text.png"), "text"),))
    with pytest.raises(CellError, match=r"picture .*text\.png cannot be read"):
        latents(engine, [cell])


def test_other_files_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    model, other = zoo("sd1"), zoo("sdxl")
    unet = model.pipeline.unet
    state = build_ip_adapter(model, "plain")
    lacking = {**state, "ip_adapter": dict(list(state["ip_adapter"].items())[:-1])}
    unknown = {**state, "image_proj": {"proj.5.weight": torch.zeros(1)}}
    more = {**state, "ip_adapter": {**state["ip_adapter"], "9.to_k_ip.weight": torch.zeros(1)}}
    bare = {**state, "image_proj": {"proj.weight": state["image_proj"]["proj.weight"]}}
    cases = [
        (lacking, "7.to_v_ip.weight is missing, the model has 4 cross-attention layers"),
        (build_ip_adapter(other, "plain"), "the model's layer [32, 32]"),
        (more, "1 of its tensors belong to no layer of the model (first 9.to_k_ip.weight)"),
        (unknown, "its image projection is of no known kind (proj.5.weight, ...)"),
        (bare, "image_proj.norm.weight is missing"),
    ]
    for index, (tensors, said) in enumerate(cases):
        file = save_ip_adapter(tensors, tmp_path / f"case{index}.safetensors")
        with pytest.raises(WeightFileError, match=re.escape(said)):
            load_ip_adapter(file, unet, torch.float32)
    with pytest.raises(WeightFileError, match=r"it is no IP-Adapter; it holds"):
        load_ip_adapter(save({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors"), unet, torch.float32)
