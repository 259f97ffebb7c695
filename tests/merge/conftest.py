"""Checkpoints to merge: the trained ones that ship with sdbatch, and random ones of every family."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sdbatch.cell import WeightFile
from sdbatch.weights.catalog import embedded_root
from tests.pipeline.conftest import one_thread, zoo

__all__ = ["one_thread", "zoo"]


def weight_file(path: Path) -> WeightFile:
    content = path.read_bytes() if path.is_file() else b""
    return WeightFile(path.stem, str(path.absolute()), hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="session")
def tiny() -> WeightFile:
    return weight_file(embedded_root() / "checkpoints/tiny.safetensors")


@pytest.fixture(scope="session")
def pastel() -> WeightFile:
    return weight_file(embedded_root() / "checkpoints/tiny_pastel.safetensors")


def quiet(done: int, total: int) -> None:
    """No progress line."""
