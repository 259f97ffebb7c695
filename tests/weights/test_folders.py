"""Diffusers folders: joined headers, and no code of a folder ever runs (case 26)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdbatch.errors import WeightFileError
from sdbatch.weights.identify import identify
from sdbatch.weights.reader import read_header
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

SD1_INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [None, None]}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def pipeline(folder: Path, cross: int = 768, prediction: str = "epsilon") -> Path:
    write_json(folder / "model_index.json", SD1_INDEX)
    write_safetensors(folder / "unet/diffusion_pytorch_model.safetensors", d.diffusers_unet(cross))
    write_safetensors(folder / "vae/diffusion_pytorch_model.safetensors", d.diffusers_vae())
    write_safetensors(folder / "text_encoder/model.safetensors", d.clip("", cross))
    for part in ("unet", "vae", "text_encoder"):
        write_json(folder / part / "config.json", {"_class_name": part})
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": prediction, "rescale_betas_zero_snr": True})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(WeightFileError) as caught:
        read_header(folder)
    return str(caught.value).removeprefix(f"{folder}: ")


def test_a_pipeline(tmp_path: Path) -> None:
    identity = identify(pipeline(tmp_path / "m", 1024, "v_prediction"))
    assert (identity.kind, identity.family, identity.format, identity.variant) == ("checkpoint", "sd2", "folder", "768-v")
    assert identity.parts == ("unet", "vae", "text_encoder")
    assert (identity.cross_attention_width, identity.embedding_widths, identity.latent_channels) == (1024, (1024,), 4)
    assert (identity.prediction_type, identity.zero_snr) == ("v_prediction", True)


def test_variants_and_shards(tmp_path: Path) -> None:
    folder = tmp_path / "flux/transformer"
    first, *rest = d.flux_diffusers().items()
    write_safetensors(folder / "diffusion_pytorch_model-00001-of-00002.safetensors", dict([first]))
    write_safetensors(folder / "diffusion_pytorch_model-00002-of-00002.safetensors", dict(rest))
    write_json(folder / "config.json", {"_class_name": "FluxTransformer2DModel"})
    assert identify(folder).family == "flux"
    assert len(read_header(folder).tensors) == len(d.flux_diffusers())
    both = pipeline(tmp_path / "both")
    plain = len(read_header(both).tensors)
    write_safetensors(both / "unet/diffusion_pytorch_model.fp16.safetensors", {"other": (1,)})
    assert len(read_header(both).tensors) == plain
    (both / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "unet.other" in read_header(both).tensors


def test_code_is_refused(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "m")
    (folder / "pipeline.py").write_text("open('marker', 'w')")
    assert refusal(folder).startswith("brings code of its own (pipeline.py), which sdbatch never runs.")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_index.json", {**SD1_INDEX, "unet": ["my_module", "Net"]}, "takes `unet` from my_module, which is not diffusers' own"),
        ("model_index.json", {**SD1_INDEX, "unet": [["list"], "Net"]}, "which is not diffusers' own"),
        ("model_index.json", {**SD1_INDEX, "custom_pipeline": "x"}, "model_index.json has the field custom_pipeline"),
        ("unet/config.json", {"auto_map": {"AutoModel": "x.Y"}}, "config.json has the field auto_map"),
        ("model_index.json", [1], "is not a JSON object"),
        ("unet/config.json", "x" * 2**21, "has more than 1048576 bytes"),
    ],
)
def test_configs_that_ask_for_more(tmp_path: Path, path: str, value: Any, message: str) -> None:
    folder = pipeline(tmp_path / "m")
    write_json(folder / path, value)
    assert message in refusal(folder)


def test_broken_parts_are_named(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "m")
    (folder / "unet/config.json").write_text("{" * 100_000)
    assert "config.json is not valid JSON" in refusal(folder)
    folder = pipeline(tmp_path / "n")
    (folder / "unet/diffusion_pytorch_model.safetensors").write_text("<html>")
    assert refusal(folder).startswith("diffusion_pytorch_model.safetensors in it is an HTML page")
