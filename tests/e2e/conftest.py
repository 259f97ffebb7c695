"""The command line in a folder that the tests of a module share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.weights.catalog import embedded_root

CHECKPOINT = embedded_root() / "checkpoints/tiny.safetensors"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sdbatch", *arguments]
        return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=400, check=False)

    return call
