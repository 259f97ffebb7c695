"""What a plan's time is told by: the images of the same checkpoint that the newest sweep beside it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sdbatch.plan.estimate import estimate
from sdbatch.plan.pace import find_pace, work_of
from sdbatch.results.commit import commit_block, read_part
from sdbatch.results.folder import SweepFolder
from sdbatch.results.writer import record
from tests.conftest import BASE, Sdbatch
from tests.planning import plan_of
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


def test_of_a_picture_that_is_given_only_the_strengths_share_is_counted(workspace: Path) -> None:
    def work(*given: str) -> float:
        return estimate(plan_of("steps=20", *given)).work_step_px

    picture = ["task=img2img", "task.image=control.png"]
    assert work(*picture, "task.strength=0.25") == work() / 4
    assert work(*picture, "task.strength=0,0.5,1") == work() * 1.5
    assert work("task=hires", "task.scale=2", "task.strength=0.5", "task.steps=10", "task.upscaler=lanczos") == work() * 2
    commit(workspace / "half", [0], age_s=5)
    row = read_part(next((workspace / "half/rows").iterdir())).to_pylist()[0]
    assert work_of(row | {"task_strength": 0.5}) == work_of(row) / 2
    assert work_of(row | {"task_strength": 0.5, "task_width": 256, "task_height": 256, "task_steps": 4}) == work_of(row) + 2 * 256 * 256
