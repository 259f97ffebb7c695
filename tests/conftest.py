"""Fixtures that every layer's tests share: a working directory with a models folder, and commands run as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from tests.weights import dialects
from tests.weights.writer import write_safetensors

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Sdbatch = Callable[..., subprocess.CompletedProcess[str]]


def narrow_checkpoint(width: int = 32) -> dict[str, tuple[int, ...]]:
    """The tensors by which a small SD 1.x checkpoint is known."""
    return narrow(dialects.ldm_unet(width) | dialects.ldm_vae(width=8) | dialects.clip("cond_stage_model.transformer.text_model.", width))


def narrow(tensors: dict[str, tuple[int, ...]], most: int = 32) -> dict[str, tuple[int, ...]]:
    """The same names with no side longer than `most`."""
    return {name: tuple(min(side, most) for side in shape) for name, shape in tensors.items()}


KINDS: dict[str, Callable[[], dict[str, tuple[int, ...]]]] = {
    "checkpoints": narrow_checkpoint,
    "loras": lambda: narrow(dialects.kohya(dialects.unet_modules(32), rank=2)),
    "text_encoders": lambda: narrow(dialects.clip("", 32)),
    "vae": lambda: dialects.ldm_vae(prefix="", width=8),
    "embeddings": lambda: {"emb_params": (2, 32)},
    "controlnet": lambda: narrow(dialects.diffusers_controlnet(32)),
}


def write_weight(path: Path, content: str = "") -> Path:
    """A weight file of the kind its folder says, for a model of width 32: a real header, all zeros. `content` tells it apart."""
    return write_safetensors(path, KINDS[path.parent.name](), metadata={"content": content or path.stem})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with two LoRAs, two checkpoints, a VAE, an embedding, a ControlNet and a config folder."""
    for name in (
        "loras/red",
        "loras/blue",
        "checkpoints/base",
        "checkpoints/other",
        "vae/soft",
        "text_encoders/fluent",
        "embeddings/nice",
        "controlnet/edges",
    ):
        write_weight(tmp_path / "models" / f"{name}.safetensors")
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "model_index.json").write_text("{}")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "control.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    yield tmp_path
    GlobalHydra.instance().clear()


BASE = ("family.config=configs", "checkpoint=base", "model=tiny")
"""Overrides that make the default configuration plan in the workspace fixture."""


@pytest.fixture
def sdbatch(workspace: Path) -> Sdbatch:
    """Run the command line in the workspace, in a process of its own."""

    def run(*arguments: str, timeout_s: float = 120, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sdbatch", *arguments]
        return subprocess.run(command, cwd=workspace, capture_output=True, text=True, timeout=timeout_s, check=check)

    return run


def heed_interrupts() -> None:
    """For `preexec_fn`: shells start what runs in the background deaf to Ctrl-C, and whatever that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object."""
    found: dict[str, object] = json.loads(path.read_text())
    return found
