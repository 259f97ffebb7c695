"""The undisturbed sweep that others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.program import QUIET, run

SEEDS = "seed=range(0,16)"
"""Four blocks of four images."""
SLOW = (*QUIET, SEEDS, "prompt=drill:slow", "steps=5", "-m")
"""The same with half a second for each block, to have something happen meanwhile."""


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep folder that nothing happened to."""
    folder = tmp_path_factory.mktemp("clean")
    ended = run(folder, *QUIET, SEEDS, "out=sweep", "-m")
    assert ended.code == 0, ended.errors
    return folder / "sweep"


@pytest.fixture(scope="session")
def clean_slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed sweep of `SLOW`."""
    folder = tmp_path_factory.mktemp("clean-slow")
    ended = run(folder, *SLOW, "out=sweep")
    assert ended.code == 0, ended.errors
    return folder / "sweep"
