"""Single file to diffusers folder and back, every family, bit for bit, and as diffusers' own loader reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.merge.convert import Change, convert
from sdbatch.merge.source import open_source
from tests.merge.conftest import quiet
from tests.pipeline.models import TinyModel, diffusers
from tests.pipeline.zoo import ZOO, Zoo

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


def state_of(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {part: getattr(pipeline, part, None) for part in PARTS}
    return {
        f"{part}.{name}": tensor for part, module in parts.items() if module is not None for name, tensor in module.state_dict().items()
    }


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def folder_of(model: TinyModel, path: Path) -> WeightFile:
    """The model as diffusers itself saves it."""
    model.pipeline.save_pretrained(path)
    return WeightFile("folder", str(path), "0" * 64)


@pytest.mark.parametrize("name", ZOO)
def test_a_folder_becomes_the_single_file_that_this_family_has(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    convert(Change(folder_of(model, tmp_path / "folder"), tmp_path / "single.safetensors"), quiet)
    wanted = load_file(model.checkpoint.path)
    found = load_file(tmp_path / "single.safetensors")
    # OpenCLIP's last layer, its projection in SD 2.x and its scale are in original files only: no picture needs them.
    unused = [key for key in wanted.keys() - found.keys() if ".resblocks." in key or key.endswith(("logit_scale", "text_projection"))]
    assert_equal(found, {key: tensor for key, tensor in wanted.items() if key not in unused})
    assert len(unused) <= 16, "one layer at most"


@pytest.mark.parametrize("name", ZOO)
def test_a_single_file_becomes_the_folder_that_diffusers_saves(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    convert(Change(model.checkpoint, tmp_path / "folder", config=model.config), quiet)
    loaded = type(model.pipeline).from_pretrained(str(tmp_path / "folder"), local_files_only=True)
    assert_equal(state_of(loaded), state_of(model.pipeline))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_own_loader_reads_the_single_file_alike(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    convert(Change(folder_of(model, tmp_path / "folder"), tmp_path / "single.safetensors"), quiet)
    loaded = type(model.pipeline).from_single_file(str(tmp_path / "single.safetensors"), config=str(model.config), local_files_only=True)
    assert_equal(state_of(loaded), state_of(model.pipeline))


@pytest.mark.parametrize("name", ZOO)
def test_a_folder_and_a_single_file_have_the_same_common_names(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    folder = open_source(folder_of(model, tmp_path / "folder")).tensors
    single = open_source(model.checkpoint).tensors
    assert folder.keys() <= single.keys()
    assert_equal({key: single[key] for key in folder}, folder)


def test_a_folder_lacks_nothing_or_is_not_made(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sd1")
    tensors = {key: tensor for key, tensor in load_file(model.checkpoint.path).items() if not key.startswith("first_stage_model.")}
    from tests.pipeline.models import save

    bare = save(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(WeightFileError, match=r"it has no vae, which a diffusers folder needs.*vae=FILE"):
        convert(Change(bare, tmp_path / "folder", config=model.config), quiet)
    assert not (tmp_path / "folder").exists()
    vae = save(
        {key: tensor for key, tensor in load_file(model.checkpoint.path).items() if "first_stage" in key}, tmp_path / "vae.safetensors"
    )
    convert(Change(bare, tmp_path / "folder", config=model.config, vae=vae), quiet)
    loaded = diffusers.AutoencoderKL.from_pretrained(str(tmp_path / "folder/vae"))
    assert_equal(loaded.state_dict(), model.pipeline.vae.state_dict())


def test_another_family_s_configs_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"tensors are missing|it has no"):
        convert(Change(zoo("sd1").checkpoint, tmp_path / "folder", config=zoo("sdxl").config), quiet)


def test_what_is_written_says_what_it_was_made_of(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("sd1")
    file = replace(model.checkpoint, sha256="ab" * 32)
    convert(Change(file, tmp_path / "half.safetensors", dtype="float16"), quiet)
    metadata = open_source(WeightFile("half", str(tmp_path / "half.safetensors"), "")).metadata
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.title"] == "half"
    assert "ab" * 32 in metadata["sdbatch.merge"]
    assert '"dtype": "float16"' in metadata["sdbatch.merge"]
