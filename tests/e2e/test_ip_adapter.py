"""An IP-Adapter through the command line: planned, made, told in the row and the PNG, and made again from the PNG alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.weights.catalog import embedded_root
from tests.adapters.ip_adapter_files import build_for_unet, build_image_encoder, save_image_encoder, save_ip_adapter
from tests.pipeline.models import diffusers, write_picture

UNET = embedded_root() / "checkpoints/tiny_diffusers/unet"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A random IP-Adapter for the embedded model, as a pickle of nested dictionaries, and its image encoder."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(str(UNET)))
    save_ip_adapter(build_for_unet(unet, "plus"), tmp_path / "models/ipadapter/follow.bin")
    save_image_encoder(build_image_encoder(), tmp_path / "models/clip_vision/eye.safetensors")
    write_picture(tmp_path / "cat.png")
    return tmp_path


def test_planned_made_told_and_made_again(place: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "sdbatch", *arguments]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "plus" in run("models", "ip_adapter", "image_encoder")
    weights = ("ip_adapter=[follow]", "ip_adapter.follow.image=cat.png", "ip_adapter.follow.weight=0,1")
    run("-m", *weights, "steps=4", "batch_size=2", "memory.threads=1", "tracking=none", "out=out")
    rows = {row["ip_adapters"][0]["weight"]: row for row in load_rows(SweepFolder(place / "out")).to_pylist()}
    assert rows.keys() == {0.0, 1.0}
    assert rows[1.0]["ip_adapters"][0]["image"] == "cat.png"
    assert [file["name"] for file in rows[1.0]["image_encoders"]] == ["eye"]
    pixels = {weight: np.asarray(Image.open(place / "out" / row["image"])) for weight, row in rows.items()}
    assert (pixels[0.0] != pixels[1.0]).mean() > 0.2
    assert "the same bytes" in run("replay", f"out/{rows[1.0]['image']}", "to=again.png")
    (place / "cat.png").write_bytes(write_picture(place / "other.png", seed=5).read_bytes())
    command = [sys.executable, "-m", "sdbatch", "replay", f"out/{rows[1.0]['image']}", "to=once_more.png"]
    refused = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 2
    assert "cannot be made again, because these files are not the same as then: cat.png" in refused.stderr
