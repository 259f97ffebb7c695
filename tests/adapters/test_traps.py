"""One test for each way in which other programs load adapters wrongly in silence."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbatch.adapters.lora import load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import Strength
from sdbatch.errors import WeightFileError
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.adapters.form_parts import make, make_layer
from tests.adapters.lora_files import attention_layers, kohya
from tests.adapters.table_files import components, in_form, linears
from tests.adapters.test_form import delta_of
from tests.pipeline.models import WIDTH, TinyModel, make_cell, save
from tests.pipeline.test_engine import latents
from tests.pipeline.zoo import build_flux


def text_of(text_encoder: Any) -> Tensor:
    return text_encoder(torch.tensor([[1, 5, 9, 2]])).last_hidden_state


@torch.no_grad()
def test_alphas_that_differ_from_layer_to_layer(model: TinyModel, tmp_path: Path) -> None:
    """diffusers takes the most common alpha for all attention layers and for the text encoder (trap 3)."""
    layers = {"unet": attention_layers(model.pipeline.unet), "text_encoder": attention_layers(model.pipeline.text_encoder)}
    file = kohya(layers, alphas=(8.0, 8.0, 8.0, 1.0))
    lora = load_lora(save(file.tensors, tmp_path / "resized.safetensors"), components(model.pipeline))
    for component, deltas in file.deltas.items():
        modules = dict(components(model.pipeline)[component].named_modules())
        for name, expected in deltas.items():
            weight = modules[name].get_parameter("weight")
            torch.testing.assert_close(lora.deltas[component][name].weight(weight), expected.reshape(weight.shape))


@torch.no_grad()
def test_dora_is_no_plain_lora(model: TinyModel, tmp_path: Path) -> None:
    """diffusers drops the magnitudes and applies the rest (trap 4)."""
    file = in_form(model.pipeline, "DoRA")
    plain = {key: tensor for key, tensor in file.tensors.items() if not key.endswith("dora_scale")}
    loras = [
        load_lora(save(tensors, tmp_path / f"{n}.safetensors"), components(model.pipeline))
        for n, tensors in enumerate((file.tensors, plain))
    ]
    name = next(iter(linears(model.pipeline.unet)))
    weight = model.pipeline.unet.get_submodule(name).weight
    with_it, without = (lora.deltas["unet"][name].weight(weight) for lora in loras)
    assert (with_it - without).norm() > 0.3 * without.norm()
    assert all(lora.applied_keys == lora.total_keys for lora in loras)


@pytest.mark.parametrize("form", ["LoHa", "LoKr"])
@torch.no_grad()
def test_alpha_counts_once(form: str) -> None:
    """lycoris-lora's `merge_to` multiplies by alpha / rank twice (trap 5); ours is what its `forward` does."""
    layer = make_layer("linear")
    parts, merge = make(form, layer)
    cls: Any = getattr(importlib.import_module(f"lycoris.modules.{form.lower()}"), {"LoHa": "LohaModule", "LoKr": "LokrModule"}[form])
    theirs = cls.make_module_from_state_dict("layer", layer, *[parts.get(key) for key in cls.weight_list])
    base = layer.weight.detach()
    ours = delta_of(parts, layer).weight(base)
    torch.testing.assert_close(ours, merge(base) - base, rtol=1e-4, atol=1e-5)
    doubled = theirs.get_diff_weight(shape=base.shape)[0]
    torch.testing.assert_close(doubled, ours * theirs.scale, rtol=1e-4, atol=1e-5)
    assert theirs.scale != 1


def test_a_name_in_mixed_case_keeps_all_of_its_vectors(engine: DiffusersEngine, model: TinyModel, tmp_path: Path) -> None:
    """diffusers keeps only the first vector of `EasyNegative` (trap 6)."""
    vectors = torch.randn(3, WIDTH)
    whole = save({"emb_params": vectors}, tmp_path / "EasyNegative.safetensors")
    first = save({"emb_params": vectors[:1]}, tmp_path / "FirstNegative.safetensors")
    recipe = model.recipe(embeddings=(whole, first))
    made = latents(engine, [make_cell(recipe, negative_prompt=word) for word in ("EasyNegative", "FirstNegative")])
    assert not torch.equal(made[0], made[1])
    prompt = engine.model.encoder
    assert prompt is not None
    tower: Any = prompt.towers[0]
    assert tower.embeddings["EasyNegative"].shape == (3, WIDTH)


def test_a_lora_of_another_family_is_never_nothing(model: TinyModel, tmp_path: Path) -> None:
    """In diffusers a peft file of another family is no error and no effect (trap 9)."""
    flux = build_flux(tmp_path / "flux")
    for_sd1 = kohya({"unet": attention_layers(model.pipeline.unet)}).tensors
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    for_flux = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    with pytest.raises(WeightFileError, match=r"none of its .* keys belongs to this model"):
        load_lora(save(for_flux, tmp_path / "for_flux.safetensors"), components(model.pipeline), "sd1")
    with pytest.raises(WeightFileError, match=r"none of its .* keys belongs to this model"):
        load_lora(save(for_sd1, tmp_path / "for_sd1.safetensors"), components(flux), "flux")


@torch.no_grad()
def test_a_strength_is_forgotten_with_its_batch(model: TinyModel, tmp_path: Path) -> None:
    """In diffusers one call with a scale leaves the text encoders of later LoRAs at it (trap 10)."""
    text_encoder: nn.Module = model.pipeline.text_encoder
    file = save(kohya({"text_encoder": attention_layers(text_encoder)}).tensors, tmp_path / "words.safetensors")
    deltas = load_lora(file, components(model.pipeline)).deltas["text_encoder"]
    stack = AdapterStack(text_encoder, [deltas], "text_encoder")
    stack.set_cells([[Strength(1, 1)]])
    expected = text_of(text_encoder)
    stack.set_cells([[Strength(0.5, 0.5)]])
    halved = text_of(text_encoder)
    stack.detach()
    again = AdapterStack(text_encoder, [deltas], "text_encoder")
    again.set_cells([[Strength(1, 1)]])
    assert torch.equal(text_of(text_encoder), expected)
    assert not torch.equal(halved, expected)
    again.detach()
