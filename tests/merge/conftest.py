"""Checkpoints to merge: the trained ones that ship with sdbatch, and random ones of every family."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from sdbatch.cell import WeightFile
from sdbatch.weights.catalog import embedded_root
from tests.pipeline.models import TinyModel
from tests.pipeline.zoo import write_zoo_model

Zoo = Callable[[str], TinyModel]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A random model of a family, made once."""

    def write(name: str) -> TinyModel:
        return write_zoo_model(name, tmp_path_factory.mktemp(name))

    return cache(write)


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
