"""Whatever holds the weights, the picture is the same; what is not whole or not a model of the family is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import ConfigError, WeightFileError
from sdbatch.families import FAMILIES, SAMPLERS, find_family
from sdbatch.families.options import scheduler_options
from sdbatch.pipeline.assemble import load_tokenizer
from sdbatch.pipeline.configs import CLIP_VOCABULARY, Configs
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.original import unscale
from tests.pipeline.models import (
    TinyModel,
    build_pipeline,
    diffusers,
    make_cell,
    original_unet,
    original_vae,
    save,
    shake,
    to_original_keys,
)
from tests.pipeline.oracle import Pixels, draw, draw_with_diffusers
from tests.pipeline.test_families import cell_of
from tests.pipeline.zoo import ZOO, Zoo, original_transformer

ZERO_SNR = "rescale_betas_zero_snr"


def as_file(path: Path) -> WeightFile:
    return WeightFile(path.name, str(path), str(path))


def as_folder(model: TinyModel, folder: Path, **options: Any) -> WeightFile:
    model.pipeline.save_pretrained(folder, **options)
    return as_file(folder)


def as_pickle(model: TinyModel, folder: Path) -> WeightFile:
    tensors = ZOO[next(name for name in ZOO if ZOO[name][0] == model.family)][2](model.pipeline)
    torch.save({"state_dict": tensors, "global_step": 840_000, "epoch": 3}, folder / "model.ckpt")
    return as_file(folder / "model.ckpt")


FORMS: dict[str, Callable[[TinyModel, Path], WeightFile]] = {
    "folder": lambda model, path: as_folder(model, path / "model"),
    "sharded folder": lambda model, path: as_folder(model, path / "model", max_shard_size="200KB"),
    "folder of pickles": lambda model, path: as_folder(model, path / "model", safe_serialization=False),
    "folder of a variant": lambda model, path: as_folder(model, path / "model", variant="fp16"),
    "sharded folder of a variant": lambda model, path: as_folder(model, path / "model", variant="fp16", max_shard_size="200KB"),
    "ckpt": as_pickle,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "flux_dev"])
def test_every_form_gives_the_same_picture(name: str, form: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    other = FORMS[form](model, tmp_path)
    engine = DiffusersEngine("cpu", 1)
    alike(draw(cell_of(model, recipe=model.recipe(checkpoint=other)), engine), draw(cell_of(model)))
    for component, module in {**engine.model.components, "vae": engine.model.vae}.items():
        state: dict[str, Tensor] = getattr(model.pipeline, component).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())


def alike(one: Pixels, other: Pixels) -> None:
    """Equal but for the rounding of kernels, some of which depend on where in a file a tensor begins."""
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_diffusers_folder_brings_its_own_configs(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sdxl")
    folder = as_folder(model, tmp_path / "model")
    recipe = model.recipe(checkpoint=folder, config=str(zoo("sd1").config))
    alike(draw(cell_of(model, recipe=recipe)), draw(cell_of(model)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux_dev"])
def test_stored_in_fewer_bits(name: str, dtype: torch.dtype, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    tensors = {key: tensor.to(dtype) for key, tensor in ZOO[name][2](model.pipeline).items()}
    recipe = model.recipe(checkpoint=save(tensors, tmp_path / f"{dtype}.safetensors"))
    engine = DiffusersEngine("cpu", 1)
    few = draw(cell_of(model, recipe=recipe), engine)
    assert {p.dtype for part in engine.model.components.values() for p in part.parameters()} == {torch.float32}
    limit = 60 if dtype is torch.float8_e4m3fn else 12
    assert 0 < np.abs(few.astype(int) - draw(cell_of(model)).astype(int)).mean() < limit


COMFY_QUANT = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)


@pytest.mark.parametrize(
    "beside", [{"scale_weight": None}, {"weight_scale": None, "comfy_quant": COMFY_QUANT, "input_scale": torch.ones(())}]
)
def test_8_bits_with_scales(beside: dict[str, Tensor | None], zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("flux_dev")
    tensors: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in ZOO["flux_dev"][2](model.pipeline).items():
        if "_blocks." in key and tensor.dim() == 2:
            scale = tensor.abs().max() / 448
            tensors[key] = (tensor / scale).to(torch.float8_e4m3fn)
            layer = key.removesuffix("weight")
            tensors |= {layer + name: scale if value is None else value.clone() for name, value in beside.items()}
        else:
            tensors[key] = tensor
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(model.recipe(checkpoint=save(tensors, tmp_path / "scaled.safetensors")))
    ours, theirs = engine.model.denoiser.state_dict(), model.pipeline.transformer.state_dict()
    for key, tensor in ours.items():
        assert float((tensor - theirs[key]).abs().max()) <= 0.08 * float(theirs[key].abs().max()), key


def test_8_bits_of_another_form_are_refused() -> None:
    rows = {"x.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "x.weight_scale": torch.ones(4, 1)}
    whole = {"x.weight": torch.zeros(4, 4, dtype=torch.int8), "x.weight_scale": torch.ones(())}
    for state in (rows, whole, {"x.weight_scale": torch.ones(())}):
        with pytest.raises(WeightFileError, match=r"x\.weight is stored in another form than float8 with one scale"):
            unscale(state)


def test_averaged_weights(model: TinyModel, tmp_path: Path) -> None:
    other = build_pipeline(tmp_path / "vocabulary", 3)
    averaged = {f"model_ema.diffusion_model{key.replace('.', '')}": tensor for key, tensor in original_unet(other.unet).items()}
    full = save({**to_original_keys(model.pipeline), **averaged, "model_ema.num_updates": torch.tensor(1)}, tmp_path / "full.safetensors")
    engine = DiffusersEngine("cpu", 1)
    for is_ema, pipeline in ((False, model.pipeline), (True, other), (False, model.pipeline)):
        engine.prepare(model.recipe(checkpoint=full, ema=is_ema))
        state = engine.model.denoiser.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in pipeline.unet.state_dict().items())
    with pytest.raises(WeightFileError, match=r"checkpoint\.ema=true asks for averaged weights, but \d+ are not in the file"):
        engine.prepare(model.recipe(ema=True))
    with pytest.raises(WeightFileError, match="a diffusers folder has one set of weights"):
        engine.prepare(model.recipe(checkpoint=as_folder(model, tmp_path / "folder"), ema=True))


@pytest.mark.parametrize("keys", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_transformer_alone_with_its_parts_from_files(prefix: str, keys: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("flux_dev")
    pipeline = model.pipeline
    state = original_transformer(pipeline.transformer) if keys == "original" else pipeline.transformer.state_dict()
    recipe = model.recipe(
        checkpoint=save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "unet.safetensors"),
        vae=save(original_vae(pipeline.vae), tmp_path / "ae.safetensors"),
        text_encoder=save({f"text_model.{k}": v for k, v in pipeline.text_encoder.state_dict().items()}, tmp_path / "clip_l.safetensors"),
        text_encoder_2=save(
            {k: v for k, v in pipeline.text_encoder_2.state_dict().items() if k != "encoder.embed_tokens.weight"},
            tmp_path / "t5xxl.safetensors",
        ),
    )
    alike(draw(cell_of(model, recipe=recipe)), draw(cell_of(model)))
    with pytest.raises(WeightFileError, match=r"it has no text_encoder_2 .* or set text_encoder_2=FILE"):
        DiffusersEngine("cpu", 1).prepare(replace(recipe, text_encoder_2=None))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux_dev"])
def test_a_layer_that_the_denoiser_has_not_is_refused_and_a_marker_is_none(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    state = ZOO[name][2](model.pipeline)
    marked = save({**state, "model.diffusion_model.marker": torch.ones(1)}, tmp_path / "marked.safetensors")
    DiffusersEngine("cpu", 1).prepare(model.recipe(checkpoint=marked))
    stranger = save({**state, "model.diffusion_model.mystery.weight": torch.ones(2)}, tmp_path / "stranger.safetensors")
    with pytest.raises(WeightFileError, match=r"1 keys are left over \(first mystery\.weight\)"):
        DiffusersEngine("cpu", 1).prepare(model.recipe(checkpoint=stranger))


@pytest.mark.parametrize("how", ["single files", "folders"])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_unet_alone_with_its_parts_from_files(name: str, how: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    model.pipeline.save_pretrained(tmp_path / "parts")
    parts: dict[str, WeightFile] = {}
    whole = ZOO[name][2](model.pipeline)
    for part in FAMILIES[model.family].components[1:]:
        path = tmp_path / f"{part.name}.safetensors"
        inside = {key.removeprefix(part.prefixes[0]): tensor for key, tensor in whole.items() if key.startswith(part.prefixes[0])}
        parts[part.name] = save(inside, path) if how == "single files" else as_file(tmp_path / "parts" / part.name)
    recipe = model.recipe(checkpoint=save(model.pipeline.unet.state_dict(), tmp_path / "alone.safetensors"), **parts)
    alike(draw(cell_of(model, recipe=recipe)), draw(cell_of(model)))


def test_t5_s_tokenizer_may_lie_beside_its_folder(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("flux_dev")
    model.pipeline.save_pretrained(tmp_path / "model")
    bare = shutil.copytree(model.config, tmp_path / "bare")
    shutil.rmtree(bare / "tokenizer_2")
    recipe = model.recipe(config=str(bare))
    beside = replace(recipe, text_encoder_2=as_file(tmp_path / "model" / "text_encoder_2"))
    alike(draw(cell_of(model, recipe=beside)), draw(cell_of(model)))


def altered(unet: Any, **changes: Any) -> Any:
    """A random UNet of the same config but for some settings."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    other = diffusers.UNet2DConditionModel.from_config({**config, **changes}).eval()
    shake(other, 4)
    return other


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_an_inpainting_model_is_given_a_picture_that_is_masked_everywhere(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    family, build, to_single = ZOO[name]
    pipeline = build(tmp_path / "vocabulary")
    pipeline.unet = altered(pipeline.unet, in_channels=9)
    recipe = model.recipe(checkpoint=save(to_single(pipeline), tmp_path / "inpainting.safetensors"))
    cell = cell_of(model, recipe=recipe, negative_prompt="bad")
    with torch.no_grad():
        grey = torch.zeros(1, 3, cell.height, cell.width)
        masked = pipeline.vae.encode(grey).latent_dist.mode() * pipeline.vae.config.scaling_factor
    cls = diffusers.StableDiffusionXLInpaintPipeline if family == "sdxl" else diffusers.StableDiffusionInpaintPipeline
    extra = {"add_watermarker": False, "force_zeros_for_empty_prompt": True} if family == "sdxl" else {"requires_safety_checker": False}
    oracle = cls(**pipeline.components, **extra)
    oracle.set_progress_bar_config(disable=True)
    inputs: dict[str, Any] = {"image": grey, "mask_image": torch.ones(1, 1, cell.height, cell.width), "masked_image_latents": masked}
    np.testing.assert_array_equal(draw(cell), draw_with_diffusers(model, cell, oracle, **inputs, strength=1.0))


def test_models_that_need_more_than_a_prompt_are_refused(model: TinyModel, tmp_path: Path) -> None:
    tensors = to_original_keys(model.pipeline)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(32, 5, 3, 3)
    with pytest.raises(WeightFileError, match=r"it is a depth model \(5 input channels\), which cannot run"):
        DiffusersEngine("cpu", 1).prepare(model.recipe(checkpoint=save(tensors, tmp_path / "depth.safetensors")))


def scheduler_of(recipe: Any) -> dict[str, Any]:
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(recipe)
    return engine.model.scheduler_config


def test_what_a_checkpoint_predicts_is_read_from_its_header_or_set(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sdxl")
    tensors = ZOO["sdxl"][2](model.pipeline)
    plain = model.recipe()
    assert scheduler_of(plain)["prediction_type"] == "epsilon"
    marked = model.recipe(checkpoint=save({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "marked.safetensors"))
    told = model.recipe(checkpoint=save(tensors, tmp_path / "told.safetensors", {"modelspec.prediction_type": "v"}))
    velocity = {"prediction_type": "v_prediction"}
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert scheduler_of(marked).items() >= {**velocity, **zero_snr}.items()
    assert scheduler_of(told).items() >= velocity.items()
    assert scheduler_of(replace(plain, prediction_type="v_prediction", zero_snr=True)).items() >= {**velocity, **zero_snr}.items()
    undone = scheduler_of(replace(marked, prediction_type="epsilon", zero_snr=False))
    assert (undone["prediction_type"], undone["rescale_betas_zero_snr"], undone["timestep_spacing"]) == ("epsilon", False, "leading")


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "euler_a"])
def test_zero_snr_equals_diffusers(name: str, zoo: Zoo) -> None:
    model = zoo("sdxl")
    cell = cell_of(model, recipe=model.recipe(prediction_type="v_prediction", zero_snr=True), sampler=SAMPLERS[name])
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    asked = replace(cell, sampler=replace(cell.sampler, options=(*cell.sampler.options, *options.items())))
    ours = draw(cell)
    np.testing.assert_array_equal(ours, draw_with_diffusers(model, asked))
    assert (ours != draw(cell_of(model, sampler=SAMPLERS[name]))).any()


@pytest.mark.parametrize("name", [name for name in FAMILIES["sd1"].samplers if ZERO_SNR in scheduler_options(SAMPLERS[name].scheduler)])
def test_every_sampler_that_can_runs_zero_snr(name: str, engine: DiffusersEngine, model: TinyModel) -> None:
    """With dpmpp_2m_beta the first two timesteps are alike; diffusers takes the second then, and runs out of them."""
    cell = make_cell(model.recipe(prediction_type="v_prediction", zero_snr=True), sampler=SAMPLERS[name], steps=5)
    engine.prepare(cell.recipe)
    (picture,) = engine.start([cell], lambda done, total: None).finish()
    assert picture.fault is None


def test_a_sampler_that_cannot_run_zero_snr_says_so(zoo: Zoo) -> None:
    model = zoo("sdxl")
    with pytest.raises(ConfigError, match="sampler: heun cannot run the zero-SNR schedule of this model"):
        draw(cell_of(model, recipe=model.recipe(zero_snr=True), sampler=SAMPLERS["heun"]))


def test_a_file_of_another_family_is_refused(zoo: Zoo) -> None:
    for name, other in (("sd1", "sdxl"), ("sdxl", "sd1"), ("flux_dev", "sd2"), ("sd2", "flux_dev")):
        with pytest.raises(WeightFileError):
            DiffusersEngine("cpu", 1).prepare(zoo(name).recipe(checkpoint=zoo(other).checkpoint))


def test_one_engine_goes_from_family_to_family(zoo: Zoo) -> None:
    engine = DiffusersEngine("cpu", 1)
    for name in (*ZOO, *reversed(ZOO)):
        model = zoo(name)
        np.testing.assert_array_equal(draw(cell_of(model), engine), draw(cell_of(model)), err_msg=name)
        assert set(engine.model.components) == {name for name in model.pipeline.components if name in ENCODERS_AND_DENOISERS}


ENCODERS_AND_DENOISERS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def test_the_refiner_has_the_second_encoder_alone_and_is_told_a_score(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo("sdxl").pipeline
    unet = altered(base.unet, cross_attention_dim=48, projection_class_embeddings_input_dim=24 + 5 * 8)
    parts = {**base.components, "unet": unet, "text_encoder": None, "tokenizer": None}
    options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False, "add_watermarker": False}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **options)
    pipeline.save_pretrained(tmp_path / "refiner")
    model = replace(zoo("sdxl"), pipeline=pipeline, config=tmp_path / "refiner", checkpoint=as_file(tmp_path / "refiner"))
    engine = DiffusersEngine("cpu", 1)
    cell = make_cell(model.recipe(), negative_prompt="bad")
    assert draw(cell, engine).std() > 5
    assert set(engine.model.components) == {"unet", "text_encoder_2"}
    seen: list[Tensor] = []
    handle = engine.model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    draw(cell, engine)
    handle.remove()
    theirs = torch.cat(
        pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), 6.0, 2.5, (64, 64), (0, 0), (64, 64), torch.float32, 24)[::-1]
    )
    added: Any = seen[0]
    assert torch.equal(added["time_ids"], theirs)


def test_the_vocabulary_that_ships_with_sdbatch_is_read_once() -> None:
    found: list[Any] = []
    for name in ("sd1", "sdxl", "sd1"):
        family = find_family(name)
        recipe = Recipe(name, str(CLIP_VOCABULARY.parents[1] / name), WeightFile("x", "x", "x"))
        found += [load_tokenizer(encoder, recipe, Configs(recipe, family)) for encoder in family.encoders]
    first, of_sdxl, second_of_sdxl, again = found
    assert first is of_sdxl
    assert first is again
    assert (first.pad_token, second_of_sdxl.pad_token) == ("<|endoftext|>", "!")
    assert first("a cat")["input_ids"] == second_of_sdxl("a cat")["input_ids"]
