"""Modules are built around the tensors they are given, which replace what layers would fill themselves with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdbatch.adapters.module import build_module
from sdbatch.errors import WeightFileError


class Tower(nn.Module):
    """A layer, a number that is no parameter, and positions, as CLIP has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.shared = nn.ModuleList([self.layer])
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("position_ids", torch.arange(5).expand(1, -1), persistent=False)


def state() -> dict[str, torch.Tensor]:
    layer = {"weight": torch.rand(2, 2), "bias": torch.rand(2)}
    return {f"{path}.{name}": tensor for path in ("layer", "shared.0") for name, tensor in layer.items()} | {"scale": torch.tensor([3.0])}


def test_the_tensors_are_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    given = state()
    drawn: list[object] = []

    def note(weight: object, **_: object) -> None:
        drawn.append(weight)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", note)
    module = build_module("x", Tower, 2, given | {"position_ids": torch.full((1, 5), 2.5)}, torch.float32)
    assert drawn == []
    assert module.get_parameter("layer.weight").data_ptr() == given["layer.weight"].data_ptr()
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.get_buffer("scale").tolist() == [3.0]
    assert module.get_buffer("position_ids").tolist() == [[0, 1, 2, 3, 4]], "never the file's, which may be rounded"


def test_a_cast_leaves_what_is_no_float() -> None:
    module = build_module("x", Tower, 2, state(), torch.float16)
    assert module.get_parameter("layer.bias").dtype is torch.float16
    assert module.get_buffer("position_ids").dtype is torch.int64


def test_layers_fill_themselves_again_afterwards() -> None:
    build_module("x", Tower, 2, state(), torch.float32)
    with pytest.raises(
        WeightFileError, match=r"x: its layer\.weight has the shape \[2, 2\], by the model's config it should have \[3, 3\]"
    ):
        build_module("x", Tower, 3, state(), torch.float32)
    torch.manual_seed(0)
    one = nn.Linear(50, 50)
    assert 0 < one.weight.std().item() < 0.2
    assert nn.GroupNorm(2, 4).weight.tolist() == [1, 1, 1, 1]


def test_what_lacks_and_what_is_too_much_is_counted() -> None:
    given = state()
    del given["shared.0.bias"]
    with pytest.raises(WeightFileError, match=r"x: 1 keys are missing \(first shared\.0\.bias\); 1 keys are left over \(first more\); "):
        build_module("x", Tower, 2, given | {"more": torch.ones(1)}, torch.float32)
