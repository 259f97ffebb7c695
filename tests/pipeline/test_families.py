"""Every family makes the same pictures as diffusers' own pipeline of it, bit for bit at batch 1, from every kind of file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import T5EncoderModel

from sdbatch.cell import Cell, Control, Sampler, Strength, WeightFile
from sdbatch.families import FAMILIES, SAMPLERS
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.adapters.lora_files import attention_layers, pair
from tests.pipeline.models import TinyModel, build_controlnet, diffusers, make_cell, save, write_picture
from tests.pipeline.oracle import draw, draw_with_diffusers
from tests.pipeline.zoo import ZOO, Zoo


def cell_of(model: TinyModel, **changes: Any) -> Cell:
    sampler = SAMPLERS["flow_euler" if model.family == "flux" else "euler"]
    return make_cell(changes.pop("recipe", None) or model.recipe(), **{"sampler": sampler, "steps": 3, **changes})


@pytest.mark.parametrize("name", ZOO)
def test_equals_diffusers(name: str, zoo: Zoo) -> None:
    model = zoo(name)
    cell = cell_of(model)
    limit = {"max_sequence_length": 256} if name == "flux_schnell" else {}
    ours = draw(cell)
    assert ours.std() > 5
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, cell, **limit))
    if model.family != "flux":
        bad = replace(cell, negative_prompt="bad", guidance_scale=3.0, width=96, height=72)
    else:
        bad = replace(cell, guidance_scale=1.5, width=96, height=80)
    np.testing.assert_array_equal(draw(bad), draw_with_diffusers(model, bad, **limit))


@pytest.mark.parametrize("name", FAMILIES["flux"].samplers)
@pytest.mark.parametrize("model_name", ["flux_dev", "flux_schnell"])
def test_samplers_of_flows_equal_diffusers(name: str, model_name: str, zoo: Zoo) -> None:
    if (name, model_name) == ("flow_dpmpp_2m", "flux_schnell"):
        pytest.skip("FluxPipeline cannot run it without dynamic shifting; the next test does")
    model = zoo(model_name)
    cell = cell_of(model, sampler=SAMPLERS[name], steps=5)
    limit = {"max_sequence_length": 256} if model_name == "flux_schnell" else {}
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell, **limit))


def test_a_flow_sampler_takes_the_model_s_shift(zoo: Zoo) -> None:
    cell = cell_of(zoo("flux_schnell"), sampler=SAMPLERS["flow_dpmpp_2m"], steps=5)
    plain = draw(cell)
    np.testing.assert_array_equal(plain, draw(replace(cell, sampler=with_options(cell, {"flow_shift": 1.0}))))
    assert (plain != draw(replace(cell, sampler=with_options(cell, {"flow_shift": 3.0})))).any()


def with_options(cell: Cell, options: dict[str, Any]) -> Sampler:
    return replace(cell.sampler, options=tuple(sorted({**dict(cell.sampler.options), **options}.items())))


@pytest.mark.parametrize(
    "name", ["euler_a", "heun", "lms", "dpmpp_2m_karras", "dpmpp_3m_sde", "unipc", "deis", "ddim_trailing", "lcm", "pndm"]
)
def test_samplers_of_noise_equal_diffusers_with_velocity_and_sizes(name: str, zoo: Zoo) -> None:
    """The other two families share sd1's samplers; what differs is what the network predicts and is told."""
    for model in (zoo("sd2"), zoo("sdxl")):
        cell = cell_of(model, sampler=SAMPLERS[name], negative_prompt="bad")
        np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell), err_msg=model.family)


@pytest.mark.parametrize("name", ZOO)
def test_one_batch_of_different_everything_equals_separate_runs(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    recipe = model.recipe(loras=(write_lora(model, tmp_path),))
    cells = [
        cell_of(model, recipe=recipe, seed=1, strengths=(Strength(0.8, 0.2),)),
        cell_of(model, recipe=recipe, seed=2, prompt="a (blue:1.3) dog", guidance_scale=1.0, strengths=(Strength(0.0, 0.0),)),
        cell_of(model, recipe=recipe, seed=3, prompt="castle", guidance_scale=8.0, strengths=(Strength(-0.5, 1.0),)),
        cell_of(model, recipe=recipe, seed=4, prompt="red " * 90, strengths=(Strength(0.3, 1.0),)),
    ]
    engine = DiffusersEngine("cpu", 1)
    together, alone = latents(engine, cells), torch.cat([latents(engine, [cell]) for cell in cells])
    assert float((together - alone).abs().max() / alone.std()) < 1e-4
    none = latents(engine, [replace(cell, recipe=model.recipe(), strengths=()) for cell in cells])
    changes = (alone - none).abs().amax(dim=(1, 2, 3))
    assert float(changes[1]) < 1e-5
    assert float(changes[[0, 2, 3]].min()) > 0.01


def latents(engine: DiffusersEngine, cells: list[Cell]) -> torch.Tensor:
    engine.prepare(cells[0].recipe)
    batch = engine.start(cells, lambda done, total: None)
    rows = {slot: group.latents[row] for group in batch.groups for row, slot in enumerate(group.slots)}
    return torch.stack([rows[slot] for slot in range(len(cells))])


def write_lora(model: TinyModel, folder: Path) -> WeightFile:
    """A LoRA on the attention of every component that adapters can change."""
    tensors: dict[str, torch.Tensor] = {}
    random = torch.Generator().manual_seed(0)
    for component in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        module = getattr(model.pipeline, component, None)
        is_clip = not isinstance(module, T5EncoderModel)
        for path, layer in attention_layers(module).items() if module is not None and is_clip else ():
            down, up, _ = pair(layer, 2, random)
            tensors |= {f"{component}.{path}.lora_A.weight": down, f"{component}.{path}.lora_B.weight": up}
    return save(tensors, folder / "style.safetensors")


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_controlnet_equals_diffusers(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    net = build_controlnet(model.pipeline)
    picture = write_picture(tmp_path / "picture.png")
    recipe = model.recipe(controlnets=(save(net.state_dict(), tmp_path / "net.safetensors"),))
    cell = cell_of(model, recipe=recipe, negative_prompt="bad", controls=(Control(str(picture), "0", weight=0.7),))
    parts = {**model.pipeline.components, "controlnet": net}
    if name == "sdxl":
        oracle = diffusers.StableDiffusionXLControlNetPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
    else:
        oracle = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    with Image.open(picture) as image:
        theirs = draw_with_diffusers(model, cell, oracle, image=image.convert("RGB"), controlnet_conditioning_scale=0.7)
    ours = draw(cell)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours != draw(replace(cell, recipe=model.recipe(), controls=()))).any()


@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, None), (2, None), (3, 1)])
def test_sdxl_takes_the_last_layer_but_one_or_a_deeper_one(clip_skip: int, theirs: int | None, zoo: Zoo) -> None:
    model = zoo("sdxl")
    cell = cell_of(model, clip_skip=clip_skip, guidance_scale=1.0)
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell, clip_skip=theirs))


@pytest.mark.parametrize(("clip_skip", "layer"), [(1, 1), (2, 1), (3, 2)])
def test_sd2_counts_the_layer_that_its_config_leaves_out(clip_skip: int, layer: int, zoo: Zoo) -> None:
    model = zoo("sd2")
    pipeline = model.pipeline

    @torch.no_grad()
    def embeds(prompt: str) -> torch.Tensor:
        ids = pipeline.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        text = pipeline.text_encoder
        return text.final_layer_norm(text(ids, output_hidden_states=True).hidden_states[-layer])

    cell = cell_of(model, clip_skip=clip_skip)
    given: dict[str, Any] = {"prompt": None, "prompt_embeds": embeds(cell.prompt), "negative_prompt_embeds": embeds("")}
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell, **given))


def test_long_prompts_of_two_encoders_are_chunks_side_by_side(zoo: Zoo) -> None:
    model = zoo("sdxl")
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(model.recipe())
    encoder = engine.model.encoder
    assert encoder is not None
    with torch.inference_mode():
        both = encoder.encode("a red cat BREAK a (blue:1.0) dog", 1)
        parts = [encoder.encode(text, 1) for text in ("a red cat", "a blue dog")]
    torch.testing.assert_close(both.tokens_TD, torch.cat([part.tokens_TD for part in parts]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.pooled_P, parts[0].pooled_P, rtol=1e-4, atol=1e-5)


def test_an_embedding_for_both_encoders_of_sdxl(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sdxl")
    random = torch.Generator().manual_seed(3)
    vectors = {"clip_l": torch.randn(2, 32, generator=random), "clip_g": torch.randn(2, 48, generator=random)}
    file = save(vectors, tmp_path / "Style.safetensors")
    oracle = ZOO["sdxl"][1](tmp_path / "vocabulary")
    oracle.load_textual_inversion({"e": vectors["clip_l"]}, "ttqx", text_encoder=oracle.text_encoder, tokenizer=oracle.tokenizer)
    oracle.load_textual_inversion({"e": vectors["clip_g"]}, "ttqx", text_encoder=oracle.text_encoder_2, tokenizer=oracle.tokenizer_2)
    cell = cell_of(model, recipe=model.recipe(embeddings=(file,)), prompt="a Style cat", negative_prompt="bad")
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell, oracle, prompt="a ttqx cat"))


def test_an_embedding_of_sd2(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sd2")
    vectors = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    file = save({"emb_params": vectors}, tmp_path / "Style.safetensors")
    oracle = ZOO["sd2"][1](tmp_path / "vocabulary")
    oracle.load_textual_inversion({"e": vectors}, "ttqx")
    cell = cell_of(model, recipe=model.recipe(embeddings=(file,)), prompt="a cat", negative_prompt="a Style dog")
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, replace(cell, negative_prompt="a ttqx dog"), oracle))


@pytest.mark.parametrize("t5", [True, False])
def test_an_embedding_of_flux_is_clip_s_and_t5_s_or_clip_s_alone(t5: bool, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("flux_dev")
    random = torch.Generator().manual_seed(3)
    vectors = {"clip_l": torch.randn(2, 32, generator=random), **({"t5": torch.randn(3, 32, generator=random)} if t5 else {})}
    cell = cell_of(model, recipe=model.recipe(embeddings=(save(vectors, tmp_path / "Style.safetensors"),)), prompt="a Style cat")
    oracle = ZOO["flux_dev"][1](tmp_path / "vocabulary")
    oracle.load_textual_inversion({"e": vectors["clip_l"]}, "ttqx", text_encoder=oracle.text_encoder, tokenizer=oracle.tokenizer)
    oracle.tokenizer_2 = copy.deepcopy(model.pipeline.tokenizer_2)  # a vocabulary is trained to other numbers each time
    if t5:
        _add_words(oracle, vectors["t5"])
    theirs = draw_with_diffusers(model, cell, oracle, prompt="a ttqx cat", prompt_2="a<e0><e1><e2>cat" if t5 else "a cat")
    np.testing.assert_array_equal(draw(cell), theirs)
    assert (theirs != draw(cell_of(model, prompt="a Style cat"))).any()


def _add_words(pipeline: Any, vectors: torch.Tensor) -> None:
    """New words of T5, with rows of their own in its table."""
    pipeline.tokenizer_2.add_tokens([f"<e{index}>" for index in range(len(vectors))])
    pipeline.text_encoder_2.resize_token_embeddings(len(pipeline.tokenizer_2), mean_resizing=False)
    pipeline.text_encoder_2.get_input_embeddings().weight.data[-len(vectors) :] = vectors


def test_t5_reads_long_prompts_whole_and_weights_words(zoo: Zoo) -> None:
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(zoo("flux_schnell").recipe())
    encoder = engine.model.encoder
    assert encoder is not None
    with torch.inference_mode():
        short, heavy, long = (encoder.encode(text, 1).tokens_TD for text in ("red cat", "red (cat:1.4)", "red cat " * 300))
    assert short.shape[0] == heavy.shape[0] == 256 < long.shape[0]
    assert not torch.equal(short, heavy)
    assert not any(module.training for part in engine.model.components.values() for module in part.modules())


def test_an_empty_negative_prompt_of_sdxl_is_nothing_and_padded_with_nothing(zoo: Zoo) -> None:
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(zoo("sdxl").recipe())
    encoder = engine.model.encoder
    assert encoder is not None
    with torch.inference_mode():
        empty, words = encoder.encode_negative("", 1), encoder.encode_negative("bad", 1)
    assert not empty.tokens_TD.any()
    assert words.tokens_TD.any()
    cells = [cell_of(zoo("sdxl"), prompt="red " * 90), cell_of(zoo("sdxl"))]
    assert torch.equal(latents(engine, cells)[1], latents(engine, cells[1:])[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ZOO)
def test_half_precision(name: str, dtype: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    recipe = model.recipe(dtype=dtype, loras=(write_lora(model, tmp_path),))
    engine = DiffusersEngine("cpu", 1)
    half, full = draw(cell_of(model, recipe=recipe), engine), draw(cell_of(model, recipe=replace(recipe, dtype="float32")))
    assert 0 < np.abs(half.astype(int) - full.astype(int)).mean() < 20
    found = {part: str(next(module.parameters()).dtype) for part, module in {**engine.model.components, "vae": engine.model.vae}.items()}
    wanted = dict.fromkeys(found, f"torch.{dtype}")
    if dtype == "float16":  # these two overflow in it
        wanted["vae"] = "torch.float32"
        wanted |= {"text_encoder_2": "torch.bfloat16"} if model.family == "flux" else {}
    assert found == wanted
