"""Sweeps on disk as a worker leaves them, without any model: a colour per strength, a shade per seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sdbatch.cell import Cell, Picture, Recipe, Sampler, Strength, WeightFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import Origin
from sdbatch.results.writer import BlockWriter, Failure, Output
from sdbatch.tracking.store import make_sqlite
from sdbatch.tracking.target import Target

SIDE = 16
STYLE = WeightFile("style_a", "/models/loras/style_a.safetensors", "a" * 64)
RECIPE = Recipe("tiny", "/configs/tiny", WeightFile("tiny", "/models/tiny.safetensors", "c" * 64), loras=(STYLE,))
EULER = Sampler("euler", "Euler", "Automatic", "EulerDiscreteScheduler")

SweepMaker = Callable[..., Path]


def colour_of(weight: float, seed: int) -> tuple[int, int, int]:
    """What the image of that cell shows."""
    return round(weight * 100), (20 + seed * 10) % 256, 90


def make_cell(weight: float, seed: int, prompt: str = "a fox", config: str = "{}") -> Cell:
    """One cell of the test sweep."""
    identity = f"{round(weight * 1000):08x}{seed:08x}{abs(hash(prompt)) % 16**8:08x}".ljust(32, "0")
    return Cell(
        identity, RECIPE, prompt, "", seed, EULER, steps=8, guidance_scale=4.0, width=SIDE, height=SIDE,
        strengths=(Strength(weight, weight),), axes=(("lora.style_a.weight", weight), ("seed", seed)), config=config,
    )  # fmt: skip


def make_picture(cell: Cell) -> Picture:
    """The picture of a test cell."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:] = colour_of(cell.strengths[0].model, cell.seed)
    pixels[0, 0] = 255  # not one single colour
    facts = {"batch_size": 4, "device": "cpu", "encode_s": 0.01, "denoise_s": 0.25, "decode_s": 0.05, "versions": {"sdbatch": "0.1"}}
    return Picture(cell, pixels, facts=facts)


def write_block(folder: Path, cells: Sequence[Cell], block: int = 0, failing: Sequence[Cell] = (), form: str = "files") -> None:
    """Commit cells as one block."""
    outcomes = [*map(make_picture, cells), *(Failure(cell, "out of memory") for cell in failing)]
    with BlockWriter(SweepFolder(folder), Origin("strengths"), Output(len(outcomes), form)) as writer:
        writer.put((0, block), outcomes)


@pytest.fixture
def make_sweep(tmp_path: Path) -> SweepMaker:
    """Make a sweep folder: strengths x seeds, the last cells failed."""

    def make(
        name: str = "sweep",
        weights: Sequence[float] = (0.0, 0.5, 1.0),
        seeds: int = 4,
        failed: int = 0,
        config: str = "{}",
        form: str = "files",
    ) -> Path:
        folder = tmp_path / "outputs" / name
        sweep = SweepFolder(folder)
        sweep.create()
        cells = [make_cell(weight, seed, config=config) for weight in weights for seed in range(seeds)]
        good = len(cells) - failed
        sweep.write_about({"name": name, "plan_id": f"plan-{name}", "cells": len(cells), "versions": {}})
        sweep.config.write_text("prompt: a fox\n", encoding="utf-8")
        write_block(folder, cells[:good], failing=cells[good:], form=form)
        return folder

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database as MLflow's migrations leave it, made once."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    make_sqlite(path)
    return path


@pytest.fixture
def target(empty_database: Path, tmp_path: Path) -> Target:
    """The default store of the sweeps in this test's `outputs`."""
    path = tmp_path / "outputs" / "mlflow.db"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(empty_database, path)
    return Target(f"sqlite:///{path}")
