"""A random model on disk, made once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from tests.pipeline.models import TinyModel, write_model
from tests.pipeline.zoo import Zoo, write_zoo_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On a shared machine two threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Random models of every family by name, each written once."""

    @cache
    def write(name: str) -> TinyModel:
        return write_zoo_model(name, tmp_path_factory.mktemp(name))

    return write


@pytest.fixture(scope="session")
def engine(model: TinyModel) -> DiffusersEngine:
    """One engine for all tests, as in a worker: what a test leaves behind must not matter to the next."""
    engine = DiffusersEngine("cpu", 1)
    engine.prepare(model.recipe())
    return engine
