"""The index: every option with what it is, from memory the second time, right again when a file changes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from sdbatch.errors import WeightFileError
from sdbatch.weights import index as index_module
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.identify import identify
from sdbatch.weights.identity import Identity
from sdbatch.weights.index import Index
from sdbatch.weights.record import from_record, to_record
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

LORA = d.kohya(d.unet_modules(768) + d.text_modules(768))


def settle(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 100 * 10**9))


def refuse(path: Path) -> Identity:
    pytest.fail(f"read again: {path}")


@pytest.mark.parametrize("tensors", [LORA, d.sdxl(), d.ip_adapter(768), d.loha(d.unet_modules(2048)), {"emb_params": (4, 768)}])
def test_a_record_is_plain_and_comes_back(tmp_path: Path, tensors: d.Tensors) -> None:
    identity = identify(write_safetensors(tmp_path / "x.safetensors", tensors, metadata={"ss_steps": "100"}))
    record = to_record(identity)
    assert from_record(json.loads(json.dumps(record))) == identity


def test_the_keys_of_a_record_are_an_interface(tmp_path: Path) -> None:
    record = to_record(identify(write_safetensors(tmp_path / "x.safetensors", LORA, scalars=d.alphas(d.unet_modules(768), 4))))
    assert list(record) == [
        "path", "name", "group", "kind", "format", "size", "family", "variant", "parts", "pruning", "dtype", "parameters",
        "cross_attention_width", "embedding_widths", "embedding_vectors", "latent_channels", "image_embedding_width", "image_hidden_width",
        "prediction_type", "zero_snr", "trigger_words", "metadata", "foreign", "algorithm", "modules",
        "transformer_width", "rank", "alpha", "blocks",
    ]  # fmt: skip
    assert (record["kind"], record["algorithm"], record["rank"], record["alpha"], record["modules"]) == ("lora", "lora", 8, 4, 6)
    assert set(to_record(identify(write_safetensors(tmp_path / "y.safetensors", d.sd1())))) == set(record)


def test_an_index_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", LORA)
    settle(path)
    first = Index(tmp_path / "cache").identify(path)
    monkeypatch.setattr(index_module, "identify", refuse)
    assert Index(tmp_path / "cache").identify(path) == first
    moved = path.rename(tmp_path / "moved.safetensors")
    assert Index(tmp_path / "cache").identify(moved).path == moved


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", LORA)
    settle(path)
    index = Index(tmp_path / "cache")
    assert index.identify(path).kind == "lora"
    write_safetensors(path, d.sd1())
    assert index.identify(path).kind == "checkpoint"


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"kind": "lora"}', "{broken"])
def test_a_damaged_memory_is_read_again(tmp_path: Path, damage: str) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", LORA)
    settle(path)
    index = Index(tmp_path / "cache")
    first = index.identify(path)
    next((tmp_path / "cache").rglob("*.json")).write_text(damage)
    assert index.identify(path) == first


def test_a_folder_is_remembered_until_a_file_in_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "controlnet"
    weights = write_safetensors(folder / "diffusion_pytorch_model.safetensors", d.diffusers_controlnet(768))
    config = folder / "config.json"
    config.write_text('{"_class_name": "ControlNetModel"}')
    settle(weights, config, folder)
    index = Index(tmp_path / "cache")
    assert index.identify(folder).family == "sd1"
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "identify", refuse)
        assert index.identify(folder).kind == "controlnet"
    write_safetensors(weights, d.diffusers_controlnet(2048))
    settle(weights, folder)
    assert index.identify(folder).family == "sdxl"


def test_the_catalogue_with_a_damaged_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "loras/good.safetensors", LORA)
    (tmp_path / "loras/bad.safetensors").write_text("<html>")
    write_safetensors(tmp_path / "vae/v.safetensors", d.ldm_vae())
    listed = {item.name: item for item in Index(tmp_path / "cache").list_catalog(Catalog([tmp_path])) if item.path.is_relative_to(tmp_path)}
    assert set(listed) == {"good", "bad", "v"}
    assert listed["good"].identity is not None
    assert listed["good"].identity.family == "sd1"
    assert listed["bad"].identity is None
    assert "is an HTML page" in (listed["bad"].fault or "")
    assert listed["v"].group == "vae"
    assert {item.group for item in Index(tmp_path / "cache").list_catalog(Catalog([tmp_path]), ["lora"])} == {"lora"}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="there is no such file"):
        Index(tmp_path / "cache").identify(tmp_path / "nope.safetensors")


def test_a_thousand_files(tmp_path: Path) -> None:
    """Loose bounds, for small files on a busy machine; a full kohya LoRA (792 tensors, 176 kB of header) costs 8 to 13 ms cold."""
    for number in range(1000):
        path = write_safetensors(tmp_path / f"loras/{number:04}.safetensors", LORA)
        settle(path)
    catalog, index = Catalog([tmp_path]), Index(tmp_path / "cache")
    start = time.process_time()
    assert sum(1 for item in index.list_catalog(catalog, ["lora"]) if item.identity) >= 1000
    cold = time.process_time() - start
    start = time.process_time()
    assert sum(1 for item in index.list_catalog(catalog, ["lora"]) if item.identity) >= 1000
    assert cold < 20
    assert time.process_time() - start < 4
