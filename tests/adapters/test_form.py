"""Every form on every layer is what its formula says, at any strength, with another strength for each image."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdbatch.adapters.delta import Delta, slice_rows
from sdbatch.adapters.dialect import group_by_module
from sdbatch.adapters.form import build_delta
from sdbatch.adapters.stack import AdapterStack
from sdbatch.errors import WeightFileError
from tests.adapters.form_parts import Parts, all_cases, make, make_layer

STRENGTHS = (0.0, 0.7, 1.0, -0.5)


def delta_of(parts: Parts, layer: nn.Module) -> Delta:
    """As a file with one module is read."""
    groups, others = group_by_module({f"layer.{name}": tensor for name, tensor in parts.items()})
    assert not others, f"{others} have no role"
    return build_delta(groups["layer"], layer.get_parameter("weight").shape)


def inputs(layer: nn.Module) -> Tensor:
    random = torch.Generator().manual_seed(3)
    shape = (4, 24, 7, 7) if isinstance(layer, nn.Conv2d) else (4, 5, 24)
    return torch.randn(shape, generator=random)


def run(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = layer.bias if bias is None else bias
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding)
    return functional.linear(x, weight, bias)


@pytest.mark.parametrize(("form", "kind"), all_cases(), ids=lambda word: str(word))
@torch.no_grad()
def test_live_terms_equal_the_merged_weight_for_each_image(form: str, kind: str) -> None:
    layer = make_layer(kind)
    parts, merge = make(form, layer)
    x, base = inputs(layer), layer.weight.clone()
    before = layer(x)
    stack = AdapterStack(nn.ModuleDict({"layer": layer}), [{"layer": delta_of(parts, layer)}])
    stack.set_strengths(torch.tensor([STRENGTHS]).T)
    together = layer(x)
    stack.detach()
    change = merge(base) - base
    assert change.abs().max() > 0.02
    for row, strength in enumerate(STRENGTHS):
        expected = run(layer, x[row : row + 1], base + strength * change)
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[0], before[0]), "strength 0 is no adapter, bit for bit"
    assert torch.equal(layer.weight, base)
    assert torch.equal(layer(x), before), "detached, it must leave no trace"


@pytest.mark.parametrize(("form", "kind"), all_cases(), ids=lambda word: str(word))
def test_the_whole_weight_equals_the_formula(form: str, kind: str) -> None:
    layer = make_layer(kind)
    parts, merge = make(form, layer)
    base = layer.weight.detach()
    torch.testing.assert_close(base + delta_of(parts, layer).weight(base), merge(base), rtol=1e-4, atol=1e-5)


LYCORIS = {
    "LoRA": "locon.LoConModule",
    "LoCon Tucker": "locon.LoConModule",
    "LoHa": "loha.LohaModule",
    "LoHa Tucker": "loha.LohaModule",
    "LoKr": "lokr.LokrModule",
    "LoKr full": "lokr.LokrModule",
    "DoRA": "locon.LoConModule",
    "DoRA over LoHa": "loha.LohaModule",
    "GLoRA": "glora.GLoRAModule",
    "OFT": "diag_oft.DiagOFTModule",
    "OFT bound and rescaled": "diag_oft.DiagOFTModule",
    "difference": "full.FullModule",
}
"""Forms that lycoris-lora computes rightly through its `forward`. Its `merge_to` doubles the scale of LoHa and LoKr, it cannot
load IA3 nor its own DyLoRA convolutions, and its LoKr of two low-rank factors needs the layer's own factorisation."""
LINEAR_IN_STRENGTH = ("LoRA", "LoCon Tucker", "LoHa", "LoHa Tucker", "LoKr", "LoKr full", "GLoRA", "OFT")


@pytest.mark.parametrize(("form", "kind"), [case for case in all_cases() if case[0] in LYCORIS], ids=lambda word: str(word))
@torch.no_grad()
def test_lycoris_says_the_same(form: str, kind: str) -> None:
    layer = make_layer(kind)
    parts, _ = make(form, layer)
    x = inputs(layer)
    delta = delta_of(parts, layer)
    where, name = LYCORIS[form].split(".")
    cls: Any = getattr(importlib.import_module(f"lycoris.modules.{where}"), name)
    theirs = cls.make_module_from_state_dict("layer", layer, *[parts.get(key) for key in cls.weight_list])
    for strength in (1.0, 0.6) if form in LINEAR_IN_STRENGTH else (1.0,):
        theirs.multiplier = strength
        expected = theirs(x)
        stack = AdapterStack(nn.ModuleDict({"layer": layer}), [{"layer": delta}])
        stack.set_strengths(torch.tensor([[strength]]))
        ours = layer(x)
        stack.detach()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_boft_turns_as_lycoris_does() -> None:
    functional_boft: Any = importlib.import_module("lycoris.functional.boft")
    layer = make_layer("linear")
    blocks = 0.3 * torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    base = layer.weight.detach()
    expected = functional_boft.diff_weight(base, blocks, None, constraint=0)
    ours = delta_of({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, layer).weight(base)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_bias_of_its_own_and_one_beside_a_low_rank_pair() -> None:
    layer = make_layer("linear")
    x, shift = inputs(layer), torch.randn(32, generator=torch.Generator().manual_seed(5))
    parts, merge = make("LoRA", layer)
    bias = layer.get_parameter("bias").clone()
    beside = delta_of({**parts, "diff_b": shift}, layer)
    alone = delta_of({"diff_b": shift}, layer)
    stack = AdapterStack(nn.ModuleDict({"layer": layer}), [{"layer": beside}, {"layer": alone}])
    stack.set_strengths(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5], [0.0, 0.0]]))
    together = layer(x)
    stack.detach()
    change = merge(layer.weight) - layer.weight
    for row, (first, second) in enumerate(((1.0, 0.0), (0.0, 2.0), (0.5, 0.5), (0.0, 0.0))):
        expected = run(layer, x[row : row + 1], layer.weight + first * change, bias + (first + second) * shift)
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.GroupNorm(4, 24), nn.RMSNorm(24)], ids=lambda norm: type(norm).__name__)
@torch.no_grad()
def test_norms(norm: Any) -> None:
    random = torch.Generator().manual_seed(4)
    norm.weight.copy_(torch.randn(24, generator=random))
    weight, bias = torch.randn(24, generator=random), torch.randn(24, generator=random)
    has_bias = getattr(norm, "bias", None) is not None
    x = torch.randn((4, 24, 5, 5) if isinstance(norm, nn.GroupNorm) else (4, 5, 24), generator=random)
    before = norm(x)
    parts = {"w_norm": weight, "b_norm": bias} if has_bias else {"w_norm": weight}
    stack = AdapterStack(nn.ModuleDict({"norm": norm}), [{"norm": delta_of(parts, norm)}])
    stack.set_strengths(torch.tensor([STRENGTHS]).T)
    together = norm(x)
    stack.detach()
    original = norm.weight.clone(), norm.bias.clone() if has_bias else None
    for row, strength in enumerate(STRENGTHS):
        norm.weight.copy_(original[0] + strength * weight)
        if original[1] is not None:
            norm.bias.copy_(original[1] + strength * bias)
        torch.testing.assert_close(together[row : row + 1], norm(x[row : row + 1]), rtol=1e-4, atol=1e-5)
    assert torch.equal(together[0], before[0])


@torch.no_grad()
def test_a_stack_of_every_form_on_one_layer_adds_up() -> None:
    layer = make_layer("conv 3x3")
    cases = [form for form, kind in all_cases() if kind == "conv 3x3"]
    made = [make(form, layer) for form in cases]
    base, x = layer.weight.clone(), inputs(layer)
    strengths = 0.4 * torch.rand(4, len(cases), generator=torch.Generator().manual_seed(8)) - 0.1
    stack = AdapterStack(nn.ModuleDict({"layer": layer}), [{"layer": delta_of(parts, layer)} for parts, _ in made])
    stack.set_strengths(strengths)
    together = layer(x)
    stack.detach()
    changes = torch.stack([merge(base) - base for _, merge in made])
    for row in range(4):
        expected = run(layer, x[row : row + 1], base + torch.einsum("l,l...->...", strengths[row], changes))
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-3, atol=1e-4)


def test_a_norm_takes_differences_alone() -> None:
    with pytest.raises(WeightFileError, match="do not fit each other or the model's weight there"):
        build_delta({"ia3": torch.ones(8, 1), "on_input": torch.tensor(0)}, (8,))


def test_forms_that_cannot_be_applied_are_refused_by_name() -> None:
    layer = make_layer("linear")
    for role, name in {"oft_diag": "OFT of 2023", "bm.weight": "Tucker core", "oft_R.weight": "peft's OFT"}.items():
        with pytest.raises(WeightFileError, match=rf"is .*{name}.*, which cannot be applied\. Use LoRA"):
            delta_of({**make("LoRA", layer)[0], role: torch.zeros(1)}, layer)


@pytest.mark.parametrize("form", ["DoRA of inputs", "OFT"])
def test_forms_that_mix_outputs_have_no_part_of_a_fused_layer(form: str) -> None:
    layer = make_layer("linear")
    whole = delta_of(make(form, layer)[0], layer).form
    assert whole is not None
    with pytest.raises(WeightFileError, match="over a fused layer has no part of its own for each layer of the model"):
        slice_rows(whole, 0, 8)


def test_a_half_precision_layer_takes_float32_factors() -> None:
    layer = make_layer("linear").to(torch.bfloat16)
    stack = AdapterStack(
        nn.ModuleDict({"layer": layer}), [{"layer": delta_of(make(form, layer)[0], layer)} for form in ("LoRA", "LoKr", "DoRA")]
    )
    stack.set_strengths(torch.ones(1, 3))
    assert layer(inputs(layer).to(torch.bfloat16)).dtype is torch.bfloat16
    layer.float()
    stack.to(torch.float32)
    assert layer(inputs(layer)).dtype is torch.float32
    stack.detach()
