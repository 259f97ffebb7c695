"""Merges in memory: what a recipe loads, keeps and loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdbatch.cell import Merge, Recipe, WeightFile, content_of, recipe_from
from sdbatch.errors import WeightFileError
from sdbatch.merge.checkpoint import Order, make_checkpoint
from sdbatch.pipeline.device import Device
from sdbatch.pipeline.model import Model
from tests.merge.conftest import quiet
from tests.pipeline.models import TinyModel, save, to_original_keys, write_model
from tests.pipeline.zoo import Zoo


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> WeightFile:
    return write_model(tmp_path_factory.mktemp("other"), seed=1).checkpoint


@pytest.fixture
def first(zoo: Zoo) -> TinyModel:
    return zoo("sd1")


def parts_of(model: Model) -> dict[str, Any]:
    return {name: slot[1] for name, slot in model._slots.items()}  # pyright: ignore[reportPrivateUsage]


def numbers(module: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()])


def test_memory_holds_what_the_merged_file_would(first: TinyModel, other: WeightFile, tmp_path: Path) -> None:
    merge = Merge(other, first.checkpoint, "ties", 0.4, density=0.3)
    make_checkpoint(Order(first.checkpoint, tmp_path / "file.safetensors", merge), quiet)
    written = WeightFile("file", str(tmp_path / "file.safetensors"), "file")
    in_memory, from_file = Model(Device("cpu")), Model(Device("cpu"))
    in_memory.prepare(first.recipe(merge=merge))
    from_file.prepare(first.recipe(checkpoint=written))
    for name, module in parts_of(in_memory).items():
        if isinstance(module, torch.nn.Module):
            assert torch.equal(numbers(module), numbers(parts_of(from_file)[name])), name


def test_what_the_numbers_do_not_touch_is_kept(first: TinyModel, other: WeightFile) -> None:
    model = Model(Device("cpu"))
    weights = (0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0)
    model.prepare(first.recipe(merge=Merge(other, ratio=0.3, blocks=weights)))
    before = parts_of(model)
    model.prepare(first.recipe(merge=Merge(other, ratio=0.3, blocks=weights[::-1])))
    after = parts_of(model)
    assert after["unet"] is not before["unet"]
    assert after["text_encoder"] is before["text_encoder"]
    assert after["vae"] is before["vae"]
    model.prepare(first.recipe(merge=Merge(other, ratio=0.3, blocks=(0.9, *weights))))
    assert parts_of(model)["text_encoder"] is not before["text_encoder"], "BASE is its ratio"
    assert not torch.equal(numbers(parts_of(model)["text_encoder"]), numbers(before["text_encoder"]))


def test_a_replaced_part_is_not_merged_again(first: TinyModel, other: WeightFile, tmp_path: Path) -> None:
    vae = save(
        {name: tensor for name, tensor in to_original_keys(first.pipeline).items() if "first_stage" in name}, tmp_path / "v.safetensors"
    )
    model = Model(Device("cpu"))
    model.prepare(first.recipe(merge=Merge(other, ratio=0.3), vae=vae))
    before = parts_of(model)["vae"]
    model.prepare(first.recipe(merge=Merge(other, ratio=0.6), vae=vae))
    assert parts_of(model)["vae"] is before


def test_another_family_is_refused_and_leaves_nothing_loaded(first: TinyModel, zoo: Zoo) -> None:
    model = Model(Device("cpu"))
    with pytest.raises(WeightFileError, match="cannot be merged"):
        model.prepare(first.recipe(merge=Merge(zoo("sdxl").checkpoint)))
    assert model.recipe is None


def test_a_recipe_survives_json(first: TinyModel, other: WeightFile) -> None:
    import json
    from dataclasses import asdict

    recipe = first.recipe(merge=Merge(other, first.checkpoint, "dare", 0.25, (0.0, 1.0, 0.5), 0.1, 7))
    assert recipe_from(json.loads(json.dumps(asdict(recipe)))) == recipe
    assert content_of(recipe)["merge"]["b"] == {"name": other.name, "sha256": other.sha256}
    assert "path" not in json.dumps(content_of(recipe))
    plain: Recipe = first.recipe()
    assert "merge" not in content_of(plain), "a neutral value says nothing"
