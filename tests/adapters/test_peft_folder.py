"""The folder that peft saves, against peft itself: alpha and rank by module, rank-stabilised, DoRA, bias; as an option of the models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdbatch.adapters.lora import load_lora
from sdbatch.adapters.stack import AdapterStack
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.hashes import Hasher
from sdbatch.weights.identify import identify
from tests.adapters.test_table import BUILD, components, outputs

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "alpha": ("sd1", "unet", {"target_modules": ATTENTION, "lora_alpha": 3}),
    "patterns": (
        "sd1",
        "unet",
        {
            "target_modules": [*ATTENTION, "conv1"],
            "lora_alpha": 3,
            "rank_pattern": {"attn1.to_q": 2, "conv1": 3},
            "alpha_pattern": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_k": 9, "attn2.to_q": 7, "to_q": 1},
        },
    ),
    "expressions": (
        "sd1",
        "unet",
        {"target_modules": ATTENTION, "lora_alpha": 3, "alpha_pattern": {r".*attn2\.to_k": 9, r"^down_blocks.*attn1\.to_(q|k)": 7}},
    ),
    "rank-stabilised": ("sd1", "unet", {"target_modules": ATTENTION, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"to_v": 2}}),
    "DoRA": ("sd1", "unet", {"target_modules": [*ATTENTION, "conv1"], "lora_alpha": 3, "use_dora": True}),
    "bias": ("sd1", "unet", {"target_modules": ["to_out.0"], "lora_alpha": 3, "lora_bias": True}),
    "text encoder": ("sd1", "text_encoder", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3, "alpha_pattern": {"v_proj": 5}}),
    "second text encoder": ("sdxl", "text_encoder_2", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3}),
    "FLUX": ("flux", "transformer", {"target_modules": ["to_q", "add_k_proj", "proj_mlp"], "lora_alpha": 3, "alpha_pattern": {"to_q": 5}}),
}
"""Family, component and settings."""


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, nn.Module]]:
    return {family: components(BUILD[family](tmp_path_factory.mktemp(family))) for family in ("sd1", "sdxl", "flux")}


def trained(component: nn.Module, folder: Path, **settings: Any) -> nn.Module:
    """A copy of the component with an adapter of random weights, which is saved as peft does."""
    model: Any = peft.get_peft_model(copy.deepcopy(component), peft.LoraConfig(r=4, **settings))  # pyright: ignore[reportArgumentType]
    random = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=random)
            parameter.data = parameter.data * (1 + 0.3 * noise) if "magnitude" in name else 0.2 * noise
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_as_peft_runs_it(case: str, pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    family, component, settings = CASES[case]
    parts = pipelines[family]
    before = outputs(parts)[component]
    model = trained(parts[component], tmp_path / "style", **settings)
    expected = outputs({**parts, component: model})[component]
    lora = load_lora(WeightFile("style", str(tmp_path / "style"), "x"), parts, family, strict=True)
    assert lora.applied_keys == lora.total_keys > 0
    assert set(lora.deltas) == {component}
    stack = AdapterStack(parts[component], [lora.deltas[component]], component, family)
    stack.set_strengths(torch.tensor([[1.0]]))
    ours = outputs(parts)[component]
    stack.detach()
    assert (expected - before).abs().max() > 1e-2 * before.abs().max()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(outputs(parts)[component], before)


def test_it_is_an_option_and_says_its_alpha(pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    folder = tmp_path / "loras" / "style"
    trained(pipelines["sd1"]["unet"], folder, target_modules=ATTENTION, lora_alpha=3, alpha_pattern={"to_q": 9})
    # What a training leaves beside it is not read, and does not count.
    before = Hasher(tmp_path / "hashes").sha256(folder)
    (folder / "checkpoint-500").mkdir()
    save_file({"x": torch.ones(1)}, folder / "checkpoint-500" / "optimizer.safetensors")
    save_file({"x": torch.ones(1)}, folder / "optimizer.safetensors")
    catalog = Catalog([tmp_path])
    assert catalog.find("lora", "style") == folder
    assert catalog.find("lora", str(folder / "adapter_model.safetensors")) == folder
    assert "checkpoint-500" not in str(catalog.options("lora").values())
    assert Hasher(tmp_path / "hashes").sha256(folder) == before
    found = identify(folder)
    assert found.lora is not None
    assert (found.kind, found.group, found.format, found.lora.modules) == ("lora", "lora", "folder", 32)
    assert {(block.alpha_min, block.alpha_max) for block in found.lora.blocks} == {(3.0, 9.0)}


def test_the_settings_count_in_its_hash(pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    trained(pipelines["sd1"]["unet"], tmp_path / "style", target_modules=ATTENTION, lora_alpha=3)
    before = Hasher(tmp_path / "hashes").sha256(tmp_path / "style")
    change(tmp_path / "style", lora_alpha=4)
    assert Hasher(tmp_path / "hashes").sha256(tmp_path / "style") != before


def test_what_a_model_saves_alone(pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    """`save_lora_adapter` of a diffusers model writes the settings without a component's name."""
    unet: Any = copy.deepcopy(pipelines["sd1"]["unet"])
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=3, target_modules=ATTENTION, init_lora_weights="gaussian"))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.full_like(parameter.data, 0.1)
    unet.save_lora_adapter(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    lora = load_lora(WeightFile("style", str(path), "x"), {"unet": pipelines["sd1"]["unet"]}, "sd1", strict=True)
    name, delta = next(iter(lora.deltas["unet"].items()))
    weight = pipelines["sd1"]["unet"].get_parameter(f"{name}.weight")
    tensors = load_file(path)
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(delta.weight(weight), product * 3 / 4)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"peft_type": "VERA"}, "peft's kind VERA"),
        ({"init_lora_weights": "pissa_niter_4"}, "begun with pissa_niter_4"),
        ({"use_qalora": True}, "has use_qalora set"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "an expression that is not read"),
        ({"alpha_pattern": {".*.*.*to_q": 3}}, "an expression that is not read"),
        ({"alpha_pattern": {"((to_q": 3}}, "an expression that is not read"),
        ({"alpha_pattern": {f"^{index}$": 1 for index in range(9)}}, "more than 8"),
        ({"alpha_pattern": ["to_q"]}, "no list of names"),
        ({"alpha_pattern": {"to_q": "big"}}, "is no number"),
        ({"lora_alpha": float("nan")}, "is no number"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], told: str, pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    trained(pipelines["sd1"]["unet"], tmp_path, target_modules=["to_q"], lora_alpha=3)
    change(tmp_path, **settings)
    with pytest.raises(WeightFileError, match=told):
        identify(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", '{"unet.alpha_pattern": {"(a+)+$": 3}}'])
def test_settings_in_the_metadata_that_are_none(text: str, pipelines: dict[str, dict[str, nn.Module]], tmp_path: Path) -> None:
    weight = pipelines["sd1"]["unet"].get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, weight.shape[1]), f"{key}.lora_B.weight": torch.ones(weight.shape[0], 2)}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    assert identify(tmp_path / "x.safetensors").kind == "lora"
    with pytest.raises(WeightFileError, match=r"lora\.x: has "):
        load_lora(WeightFile("x", str(tmp_path / "x.safetensors"), "x"), {"unet": pipelines["sd1"]["unet"]}, "sd1")
