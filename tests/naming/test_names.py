"""The tables of names, held by diffusers' own converters, on every layer of every full-size model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from sdbatch.adapters.piece import join_all, read_component, write_component
from sdbatch.families import FAMILIES, Family
from sdbatch.merge.model import read_likes
from sdbatch.naming import find_naming, names_of
from sdbatch.naming.file import ema_name, find_alone, to_original, to_pieces
from sdbatch.plan.files import find_config
from tests.pipeline.models import diffusers

Tensors = dict[str, Tensor]
converters: Any = single_file_utils
MOST_WIDE = 4
"""Tensors are cut to this, where the converters do not count rows: names do not depend on widths."""

MODELS = {"sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sdxl_refiner": "sdxl", "flux_dev": "flux", "flux_schnell": "flux"} | {
    "tiny_diffusers": "tiny"
}
"""Folder of configs -> family."""


@cache
def model_of(config: str) -> Tensors:
    """Every tensor of a full-size model under its common name: narrow, each of other values."""
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(_cut(name, like), generator=random) for name, like in read_likes(find_config(config)).items()}


def _cut(name: str, like: Tensor) -> list[int]:
    if name.startswith("transformer."):
        return [*like.shape[:1], *(1 for _ in like.shape[1:])]
    return [side if index > 1 else min(side, MOST_WIDE) for index, side in enumerate(like.shape)]


def as_single_file(config: str) -> Tensors:
    tensors = model_of(config)
    return join_all(to_original(tensors, MODELS[config]), tensors)


def under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def settings(config: str, component: str) -> dict[str, Any]:
    return json.loads((find_config(config) / component / "config.json").read_text())


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("config", [name for name in MODELS if MODELS[name] != "flux"])
def test_unets_are_named_as_diffusers_reads_them(config: str) -> None:
    found = converters.convert_ldm_unet_checkpoint(as_single_file(config), settings(config, "unet"))
    assert_equal(found, under(model_of(config), "unet."))


@pytest.mark.parametrize("config", MODELS)
def test_vaes_are_named_as_diffusers_reads_them(config: str) -> None:
    found = converters.convert_ldm_vae_checkpoint(as_single_file(config), settings(config, "vae"))
    assert_equal(found, under(model_of(config), "vae."))


@pytest.mark.parametrize("config", ["flux_dev", "flux_schnell"])
def test_flux_is_named_as_diffusers_reads_it(config: str) -> None:
    file = under(as_single_file(config), "model.diffusion_model.")
    assert_equal(converters.convert_flux_transformer_checkpoint_to_diffusers(file), under(model_of(config), "transformer."))


TEXTS: dict[tuple[str, str], str] = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
    ("sdxl_refiner", "text_encoder_2"): "conditioner.embedders.0.model.",
    ("flux_dev", "text_encoder"): "text_encoders.clip_l.transformer.",
}


@pytest.mark.parametrize(("config", "component"), TEXTS)
def test_text_encoders_are_named_as_diffusers_reads_them(config: str, component: str) -> None:
    file, prefix = as_single_file(config), TEXTS[config, component]
    if prefix.endswith(".model."):
        narrow = SimpleNamespace(config=SimpleNamespace(hidden_size=MOST_WIDE))
        found = converters.convert_open_clip_checkpoint(narrow, file, prefix)
    else:
        found = converters.convert_ldm_clip_checkpoint(file, prefix)
    assert_equal(found, under(model_of(config), f"{component}."))


def test_t5_is_named_as_diffusers_reads_it() -> None:
    found = converters.convert_sd3_t5_checkpoint_to_diffusers(as_single_file("flux_dev"))
    assert_equal(found, under(model_of("flux_dev"), "text_encoder_2."))


@pytest.mark.parametrize("config", ["sd1", "sd2", "sdxl"])
def test_controlnets_are_named_as_diffusers_reads_them(config: str) -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(settings(config, "unet"))
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    state = {name: torch.randn([min(side, MOST_WIDE) for side in like.shape]) for name, like in net.state_dict().items()}
    file = write_component(state, names_of("controlnet", state))
    # diffusers leaves SDXL's embedding of sizes behind.
    known = {name: tensor for name, tensor in state.items() if not name.startswith("add_embedding.")}
    assert_equal(converters.convert_controlnet_checkpoint(file, net.config), known)
    assert_equal(read_component(file, names_of("controlnet", file)), state)


@pytest.mark.parametrize("config", MODELS)
def test_what_is_written_is_read_again(config: str) -> None:
    file, model = as_single_file(config), model_of(config)
    assert {part for piece in to_pieces(file).values() for part in piece.names} == model.keys()
    for component in {name.partition(".")[0] for name in model}:
        own = under(model, f"{component}.")
        prefix = find_alone(file, component)
        state = under(file, prefix)
        assert_equal(read_component(state, names_of(find_naming(state) or "", state)), own)


@pytest.mark.parametrize("config", MODELS)
def test_what_is_diffusers_own_stays_as_it_is(config: str) -> None:
    model = model_of(config)
    assert {name: piece.names for name, piece in to_pieces(model, is_folder=True).items()} == {name: (name,) for name in model}
    for component in {name.partition(".")[0] for name in model}:
        own = under(model, f"{component}.")
        assert not names_of(find_naming(own) or "", own).is_original(own)


def names_in(config: str, component: str) -> Collection[str]:
    return under(model_of(config), f"{component}.")


def test_older_spellings_are_read() -> None:
    vae = names_of("vae", names_in("sd1", "vae"))
    assert vae.read("decoder.mid_block.attentions.0.proj_attn.bias") == (("decoder.mid_block.attentions.0.to_out.0.bias",), "plain", ())
    convolution = {"encoder.mid.attn_1.q.weight": torch.ones(4, 4, 1)}
    assert read_component(convolution, vae)["encoder.mid_block.attentions.0.to_q.weight"].shape == (4, 4)
    clip = names_of("clip", [])
    assert clip.read("encoder.layers.3.mlp.fc1.bias") == (("text_model.encoder.layers.3.mlp.fc1.bias",), "plain", ())
    assert clip.read("text_model.embeddings.position_ids") is None
    assert names_of("t5", []).read("encoder.embed_tokens.weight") == (("shared.weight",), "plain", ())


def test_what_is_no_layer_is_left_out_and_an_unknown_layer_is_kept() -> None:
    names = names_of("unet", to_original([f"unet.{name}" for name in names_in("sd1", "unet")], "sd1"))
    one = torch.ones(1)
    given = {"v_pred": one, "input_blocks.0.0.weight": one, "input_blocks.1.2.weight": one, "input_blocks.0.0.weight_scale": one}
    assert read_component(given, names).keys() == {"conv_in.weight", "input_blocks.1.2.weight", "conv_in.weight_scale"}


ALONE: dict[str, tuple[str, str, Callable[[], Collection[str]]]] = {
    "VAE of a whole checkpoint": ("vae", "first_stage_model.", lambda: as_single_file("sd1")),
    "VAE alone": ("vae", "", lambda: names_in("sd1", "vae")),
    "CLIP alone": ("text_encoder", "", lambda: names_in("sd1", "text_encoder")),
    "the second encoder beside the first": ("text_encoder_2", "conditioner.embedders.1.model.", lambda: as_single_file("sdxl")),
    "the first under the second's name": (
        "text_encoder",
        "text_encoders.clip_g.transformer.",
        lambda: [f"text_encoders.clip_g.transformer.{name}" for name in names_in("sdxl", "text_encoder_2")],
    ),
    "T5 beside CLIP": ("text_encoder_2", "text_encoders.t5xxl.transformer.", lambda: as_single_file("flux_dev")),
}


@pytest.mark.parametrize("case", ALONE)
def test_a_component_is_found_in_a_file_of_its_own_or_among_others(case: str) -> None:
    component, prefix, names = ALONE[case]
    assert find_alone(names(), component) == prefix


def alone_prefix(family: str, component: str, first: str) -> str:
    """FLUX's transformer alone has none, as its authors published it; the second text encoder alone is SDXL's refiner's."""
    return {("flux", "transformer"): "", ("sdxl", "text_encoder_2"): "conditioner.embedders.0.model."}.get((family, component), first)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_component_alone_is_written_where_its_family_keeps_it(family: Family) -> None:
    config = {"flux": "flux_dev"}.get(family.name, family.name)
    for part in family.components:
        own = {f"{part.name}.{name}" for name in names_in(config, part.name)}
        alone = to_original(own, family.name)
        prefix = alone_prefix(family.name, part.name, part.prefixes[0])
        assert all(name.startswith(prefix) for name in alone)
        if prefix:
            assert {name for piece in to_pieces(alone).values() for name in piece.names} == own


def test_averaged_weights_have_names_without_dots() -> None:
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_what_is_no_model_has_no_naming() -> None:
    assert find_naming(["lora_unet_down_blocks_0.lora_up.weight", "v_pred"]) is None
    assert to_pieces(["lora_unet_down_blocks_0.lora_up.weight"]) == {}
