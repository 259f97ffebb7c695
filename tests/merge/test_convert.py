"""Conversion: pickles, number formats, averaged weights, pruning, a baked VAE, and the files that are no checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sdbatch.cell import Merge, WeightFile
from sdbatch.errors import ConfigError, WeightFileError
from sdbatch.merge.checkpoint import Order, make_checkpoint
from sdbatch.merge.convert import Change, convert
from sdbatch.weights.catalog import embedded_root
from tests.merge.conftest import quiet, weight_file
from tests.pipeline.models import save
from tests.pipeline.zoo import Zoo


def ema_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averaged weights as training code keeps them: the same names without dots, other numbers."""
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    return {f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1 for name, tensor in unet.items()}


@pytest.fixture(scope="module")
def trained(tiny: WeightFile, tmp_path_factory: pytest.TempPathFactory) -> WeightFile:
    """A checkpoint as training leaves it: a pickle with float32 weights, averaged ones, an optimizer and numbers beside them."""
    tensors = {name: tensor.float() for name, tensor in load_file(tiny.path).items()}
    extras = {"alphas_cumprod": torch.ones(5), "model_ema.decay": torch.tensor(0.9)}
    content: dict[str, Any] = {"state_dict": {**tensors, **ema_of(tensors), **extras}, "epoch": 7, "optimizer_states": [{"state": {}}]}
    path = tmp_path_factory.mktemp("trained") / "trained.ckpt"
    torch.save(content, path)
    return weight_file(path)


def test_a_pickle_keeps_its_names_and_numbers(trained: WeightFile, tiny: WeightFile, tmp_path: Path) -> None:
    convert(Change(trained, tmp_path / "new.safetensors"), quiet)
    found = load_file(tmp_path / "new.safetensors")
    wanted = torch.load(trained.path, weights_only=True)["state_dict"]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_pruning_leaves_what_images_need(trained: WeightFile, tiny: WeightFile, tmp_path: Path) -> None:
    convert(Change(trained, tmp_path / "new.safetensors", dtype="float16", prune=True), quiet)
    found, wanted = load_file(tmp_path / "new.safetensors"), load_file(tiny.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert (tmp_path / "new.safetensors").stat().st_size < Path(trained.path).stat().st_size / 3


def test_averaged_weights_take_the_place_of_the_trained_ones(trained: WeightFile, tiny: WeightFile, tmp_path: Path) -> None:
    convert(Change(trained, tmp_path / "new.safetensors", ema=True, prune=True), quiet)
    found, wanted = load_file(tmp_path / "new.safetensors"), load_file(tiny.path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.float() + (1 if name.startswith("model.diffusion_model.") else 0)), name


def test_a_file_with_averaged_weights_alone_gets_ordinary_names(tiny: WeightFile, tmp_path: Path) -> None:
    tensors = load_file(tiny.path)
    only = save(
        {**{name: tensor for name, tensor in tensors.items() if "diffusion_model" not in name}, **ema_of(tensors)},
        tmp_path / "only.safetensors",
    )
    convert(Change(only, tmp_path / "new.safetensors", prune=True), quiet)
    found = load_file(tmp_path / "new.safetensors")
    assert found.keys() == tensors.keys()
    assert torch.equal(found["model.diffusion_model.out.2.bias"], tensors["model.diffusion_model.out.2.bias"] + 1)


def test_what_float16_cannot_hold_is_refused(tiny: WeightFile, tmp_path: Path) -> None:
    tensors = {name: tensor.float() for name, tensor in load_file(tiny.path).items()}
    tensors["model.diffusion_model.out.2.bias"][0] = 1e6
    large = save(tensors, tmp_path / "large.safetensors")
    with pytest.raises(WeightFileError, match=r"unet.conv_out.bias holds 1e\+06, more than float16 can"):
        convert(Change(large, tmp_path / "new.safetensors", dtype="float16"), quiet)
    convert(Change(large, tmp_path / "new.safetensors", dtype="bfloat16"), quiet)
    assert {tensor.dtype for tensor in load_file(tmp_path / "new.safetensors").values()} == {torch.bfloat16}


def test_a_baked_vae_is_the_file_s(tiny: WeightFile, tmp_path: Path) -> None:
    vivid = weight_file(embedded_root() / "vae/tiny_vivid.safetensors")
    convert(Change(tiny, tmp_path / "new.safetensors", vae=vivid), quiet)
    found, before, vae = load_file(tmp_path / "new.safetensors"), load_file(tiny.path), load_file(vivid.path)
    assert found.keys() == before.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, found[name])}
    assert changed
    assert all(name.startswith("first_stage_model.") for name in changed)
    baked = {float(tensor.float().sum()) for name, tensor in found.items() if name.startswith("first_stage_model.")}
    assert baked == {float(tensor.float().sum()) for tensor in vae.values()}


def test_another_size_of_vae_is_refused(tiny: WeightFile, zoo: Zoo, tmp_path: Path) -> None:
    other = save(
        {name: tensor for name, tensor in load_file(zoo("sd1").checkpoint.path).items() if "first_stage" in name},
        tmp_path / "v.safetensors",
    )
    with pytest.raises(WeightFileError, match="vae=v: does not fit tiny"):
        convert(Change(tiny, tmp_path / "new.safetensors", vae=other), quiet)


def test_a_lora_changes_its_numbers_only(tmp_path: Path) -> None:
    style = weight_file(embedded_root() / "loras/style_a.safetensors")
    convert(Change(style, tmp_path / "new.safetensors", dtype="float32"), quiet)
    found, wanted = load_file(tmp_path / "new.safetensors"), load_file(style.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in wanted.items())


def test_an_old_embedding_becomes_a_plain_tensor(tmp_path: Path) -> None:
    vectors = torch.randn(3, 128)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "nice"}, tmp_path / "nice.pt")
    convert(Change(weight_file(tmp_path / "nice.pt"), tmp_path / "nice.safetensors"), quiet)
    assert torch.equal(load_file(tmp_path / "nice.safetensors")["emb_params"], vectors)


def test_a_lora_makes_no_folder(tmp_path: Path) -> None:
    style = weight_file(embedded_root() / "loras/style_a.safetensors")
    with pytest.raises(ConfigError, match=r"style_a is a LoRA.*give out=NAME.safetensors"):
        convert(Change(style, tmp_path / "folder"), quiet)


def test_a_merge_that_is_not_finite_is_not_written(tiny: WeightFile, tmp_path: Path) -> None:
    tensors = load_file(tiny.path)
    tensors["model.diffusion_model.out.2.bias"][0] = float("nan")
    damaged = save(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(WeightFileError, match=r"unet.conv_out.bias is not finite once merged"):
        make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(damaged)), quiet)
    assert not (tmp_path / "new.safetensors").exists()
