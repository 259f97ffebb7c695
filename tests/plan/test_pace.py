"""What a plan's time is told by: the images of the same checkpoint that the newest sweep beside it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sdbatch.plan.pace import find_pace
from sdbatch.results.commit import commit_block
from sdbatch.results.folder import SweepFolder
from sdbatch.results.writer import record
from tests.conftest import BASE, Sdbatch
from tests.results.samples import ORIGIN, make_picture


def commit(path: Path, seeds: Sequence[int], age_s: int) -> None:
    folder = SweepFolder(path)
    folder.create()
    rows, images = record(folder, ORIGIN, [make_picture(seed) for seed in seeds], room=100)
    for row in rows:
        row.update(denoise_s=row["steps"] * row["width"] * row["height"] * age_s * 1e-9, encode_s=0.0, decode_s=0.0)
    commit_block(folder, (0, 0), rows, images)
    os.utime(folder.rows, (1e9 - age_s, 1e9 - age_s))


def test_the_sweep_itself_comes_first_then_the_newest_beside_it(tmp_path: Path) -> None:
    commit(tmp_path / "old", [0, 1, 2], age_s=5)
    commit(tmp_path / "older", [3], age_s=7)
    sha256 = make_picture(0).cell.recipe.checkpoint.sha256
    found = find_pace(tmp_path / "new", {sha256})
    assert found is not None
    assert (found.sweep, found.s_per_step_px) == (tmp_path / "old", pytest.approx(5e-9))
    own = find_pace(tmp_path / "older", {sha256, "0" * 64})
    assert own is not None and own.s_per_step_px == pytest.approx(7e-9)
    assert find_pace(tmp_path / "new", {"0" * 64}) is None
    assert find_pace(tmp_path / "nowhere/new", {sha256}) is None
    part = next((tmp_path / "old/rows").iterdir())
    part.write_bytes(part.read_bytes()[:-99])
    damaged = find_pace(tmp_path / "new", {sha256})
    assert damaged is not None and damaged.sweep.name == "older"


def test_a_plan_tells_memory_and_time(sdbatch: Sdbatch) -> None:
    first = sdbatch("plan", *BASE, "seed=1,2", "-m").stdout
    assert "  memory   1 MB of weights at a time" in first
    assert "  time     not known before images of these checkpoints were made here" in first
