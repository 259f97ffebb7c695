"""Hypernetworks as A1111 writes them, against the same networks as torch modules on the weights' inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdbatch.adapters.hypernetwork import Hypernetwork, HypernetworkStack, load_hypernetwork
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from tests.adapters.test_lora import run
from tests.pipeline.models import TinyModel

FUNCTIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "swish": nn.Hardswish, "leakyrelu": nn.LeakyReLU, "Softsign": nn.Softsign}


def network(width: int, structure: list[int], seed: int, settings: dict[str, Any]) -> nn.Sequential:
    """As A1111 builds it for training: dropout layers take places of their own."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for index in range(len(structure) - 1):
        layers.append(nn.Linear(width * structure[index], width * structure[index + 1]))
        is_last = index == len(structure) - 2
        if (name := settings.get("activation_func", "linear")) != "linear" and (not is_last or settings.get("activate_output", True)):
            layers.append(FUNCTIONS[name]())
        if settings.get("is_layer_norm"):
            norm = nn.LayerNorm(width * structure[index + 1])
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            layers.append(norm)
        if settings.get("use_dropout") and not is_last:
            layers.append(nn.Dropout(0.3))
    return nn.Sequential(*layers).eval()


def write(path: Path, settings: dict[str, Any], widths: tuple[int, ...] = (32, 64), seed: int = 0) -> tuple[WeightFile, dict[int, Any]]:
    structure = settings.get("layer_structure", [1, 2, 1])
    pairs = {width: tuple(network(width, structure, seed + 2 * width + side, settings) for side in range(2)) for width in widths}
    states = {width: tuple({f"linear.{key}": t for key, t in part.state_dict().items()} for part in pair) for width, pair in pairs.items()}
    torch.save({"step": 100, "name": path.stem, "sd_checkpoint": "abc", **settings, **states}, path)
    return WeightFile(path.stem, str(path), path.stem), pairs


class Wrapped(nn.Module):
    """A key or value layer whose input has gone through a network."""

    def __init__(self, layer: nn.Module, nets: list[tuple[nn.Module, float]]) -> None:
        super().__init__()
        self.layer, self.nets = layer, nets

    def forward(self, x: Tensor) -> Tensor:
        for net, strength in self.nets:
            x = x + net(x) * strength
        return self.layer(x)


def wrapped(unet: nn.Module, files: list[tuple[dict[int, Any], float]]) -> nn.Module:
    unet = copy.deepcopy(unet)
    for name, module in list(unet.named_modules()):
        for side, end in enumerate(("to_k", "to_v")):
            if name.endswith(end) and isinstance(module, nn.Linear):
                nets = [(pairs[module.in_features][side], strength) for pairs, strength in files if module.in_features in pairs]
                setattr(unet.get_submodule(name.rpartition(".")[0]), end, Wrapped(module, nets))
    return unet


CASES: dict[str, dict[str, Any]] = {
    "plain": {"layer_structure": [1, 2, 1], "activation_func": "linear"},
    "relu": {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False},
    "activated output": {"layer_structure": [1, 2, 1], "activation_func": "swish"},
    "layer norm": {"layer_structure": [1, 2, 1], "activation_func": "leakyrelu", "is_layer_norm": True, "activate_output": False},
    "deep with dropout": {
        "layer_structure": [1, 2, 2, 1],
        **{"activation_func": "Softsign", "is_layer_norm": True, "use_dropout": True, "activate_output": True},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_same_networks_in_the_model(case: str, model: TinyModel, tmp_path: Path) -> None:
    file, pairs = write(tmp_path / "hyper.pt", CASES[case])
    before = run(model.pipeline, batch=4)
    stack = HypernetworkStack(model.pipeline.unet, [load_hypernetwork(file)])
    strengths = (0.0, 0.6, 1.0, -0.5)
    stack.set_strengths(torch.tensor([strengths]).T)
    together = run(model.pipeline, batch=4)
    stack.detach()
    assert torch.equal(run(model.pipeline, batch=4), before), "detached, it must leave no trace"
    assert torch.equal(together[0], before[0])
    for image, strength in enumerate(strengths):
        unet = wrapped(model.pipeline.unet, [(pairs, strength)])
        expected = run(type("Wrapped", (), {"unet": unet, "text_encoder": model.pipeline.text_encoder}))
        torch.testing.assert_close(together[image : image + 1], expected, rtol=1e-4, atol=3e-5 * float(expected.abs().max()))
    assert (together[2] - before[2]).abs().max() > 0.01


def test_two_act_one_after_the_other(model: TinyModel, tmp_path: Path) -> None:
    one, first = write(tmp_path / "one.pt", CASES["relu"], (32,))
    two, second = write(tmp_path / "two.pt", CASES["activated output"], seed=99)
    stack = HypernetworkStack(model.pipeline.unet, [load_hypernetwork(one), load_hypernetwork(two)])
    stack.set_strengths(torch.tensor([[0.7, 1.2]]))
    ours = run(model.pipeline)
    stack.detach()
    unet = wrapped(model.pipeline.unet, [(first, 0.7), (second, 1.2)])
    expected = run(type("Wrapped", (), {"unet": unet, "text_encoder": model.pipeline.text_encoder}))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=3e-5 * float(expected.abs().max()))


def test_a_file_for_several_families_gives_each_its_own_networks(model: TinyModel, tmp_path: Path) -> None:
    """A1111 trains any set of 320, 640, 768, 1024 and 1280, and leaves out what a model does not have."""
    file, pairs = write(tmp_path / "both.pt", CASES["relu"], (32, 64, 1024))
    stack = HypernetworkStack(model.pipeline.unet, [load_hypernetwork(file)])
    stack.set_strengths(torch.tensor([[0.8]]))
    ours = run(model.pipeline)
    stack.detach()
    unet = wrapped(model.pipeline.unet, [(pairs, 0.8)])
    expected = run(type("Wrapped", (), {"unet": unet, "text_encoder": model.pipeline.text_encoder}))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=3e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "state", [None, {"linear.0.weight": torch.ones(2, 2)}, {"linear.x.weight": 1}, {"linear.0.weight": 1, "linear.0.bias": 2}]
)
def test_networks_that_are_none(state: Any, tmp_path: Path) -> None:
    torch.save({32: (state, state), "activation_func": "relu"}, tmp_path / "bad.pt")
    with pytest.raises(WeightFileError, match=r"hypernetwork\.bad: its networks for 32 cannot be read"):
        load_hypernetwork(WeightFile("bad", str(tmp_path / "bad.pt"), "bad"))


def test_old_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"linear{n}.{kind}": torch.randn(s) for n, kind, s in ((1, "weight", (16, 8)), (1, "bias", (16,)))}
    state |= {"linear2.weight": torch.randn(8, 16), "linear2.bias": torch.randn(8)}
    torch.save({8: (state, state), "name": "old"}, tmp_path / "old.pt")
    loaded: Hypernetwork = load_hypernetwork(WeightFile("old", str(tmp_path / "old.pt"), "old"))
    keys = loaded.pairs[8][0]
    assert [layer.weight.shape for layer in keys] == [(16, 8), (8, 16)]
    assert torch.equal(keys[1].bias, state["linear2.bias"])


def test_another_family_an_unknown_function_and_no_hypernetwork(model: TinyModel, tmp_path: Path) -> None:
    wide, _ = write(tmp_path / "wide.pt", CASES["plain"], (64, 768))
    with pytest.raises(WeightFileError, match=r"hypernetwork\.wide: made for contexts 64, 768 wide, the model's are 32, 64"):
        HypernetworkStack(model.pipeline.unet, [load_hypernetwork(wide)])
    odd, _ = write(tmp_path / "odd.pt", CASES["plain"])
    content = torch.load(odd.path, weights_only=True)
    torch.save({**content, "activation_func": "rellu"}, odd.path)
    with pytest.raises(WeightFileError, match=r"its activation 'rellu' is not known\. Did you mean relu"):
        load_hypernetwork(odd)
    torch.save({"name": "x"}, odd.path)
    with pytest.raises(WeightFileError, match="no networks found in it"):
        load_hypernetwork(odd)
