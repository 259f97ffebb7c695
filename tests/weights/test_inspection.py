"""The record that scripts get, and what importing the package costs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from sdbatch.weights.hashes import Hasher
from sdbatch.weights.inspection import inspect_file
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors


def test_a_lora(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", d.kohya(d.unet_modules(768)), metadata={"ss_steps": "10"})
    record = inspect_file(path, hasher=Hasher())
    content = path.read_bytes()
    body = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    whole = hashlib.sha256(content).hexdigest()
    assert record["summary"] == "a LoRA for SD 1.x (768-wide cross-attention)"
    assert (record["sha256"], record["autov2"], record["autov3"], record["a1111_short"]) == (whole, whole[:10], body[:12], body[:12])
    assert json.loads(json.dumps(record)) == record
    assert "sha256" not in inspect_file(path)


def test_the_trainers_hash_comes_first(tmp_path: Path) -> None:
    metadata = {**{f"ss_{number}": "x" for number in range(95)}, "sshs_model_hash": "cd" * 32}
    path = write_safetensors(tmp_path / "x.safetensors", d.kohya(d.unet_modules(768)), metadata=metadata)
    assert inspect_file(path, hasher=Hasher())["a1111_short"] == "cd" * 6


def test_a_folder_has_no_short_hashes_of_bytes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "cn/diffusion_pytorch_model.safetensors", d.diffusers_controlnet(768))
    (tmp_path / "cn/config.json").write_text("{}")
    record = inspect_file(tmp_path / "cn", hasher=Hasher())
    assert (record["autov1"], record["autov3"]) == (None, None)
    assert len(record["sha256"]) == 64


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, sdbatch.weights.inspection; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "numpy", "hydra", "omegaconf", "diffusers", "transformers", "pyarrow", "mlflow", "rich", "safetensors"}
    assert not heavy & set(loaded)
    assert not {"pickle", "zipfile", "sqlite3", "multiprocessing"} & set(loaded)


def test_importing_the_catalogue_is_cheap() -> None:
    """Measured: 25 to 30 ms of CPU, most of it dataclasses, pathlib and difflib of the standard library."""
    code = "import time; start = time.process_time(); import sdbatch.weights.catalog; print(time.process_time() - start)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.15
