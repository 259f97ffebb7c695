"""Sweeps of test patterns that last long enough to be disturbed, and what must be true of them at the end."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sdbatch.cell import Cell
from sdbatch.pipeline.rehearsal import draw_pattern
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.png import png_of
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.verify import verify
from tests.conftest import BASE

REHEARSAL = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "out=sweep", "width=64", "height=64")
SLOW = (*REHEARSAL, "prompt=drill:slow", "batch_size=4", "steps=5", "-m")
"""Half a second for four images."""


def made(folder: Path) -> int:
    """Images that are committed now."""
    return len(committed(SweepFolder(folder)).done)


def image_sha256(cell: Cell) -> str:
    """Of the file that an undisturbed worker writes for a cell of test patterns."""
    return hashlib.sha256(png_of(cell, draw_pattern(cell.image_id, cell.width, cell.height))).hexdigest()


def check_exact(folder: Path, cells: int, failed: int = 0) -> None:
    """Every cell of the plan is there once, the image of each success with the bytes of a run in peace, and nobody is at work."""
    sweep = SweepFolder(folder)
    plan = PlanFile(sweep.plan)
    peaceful = {cell.image_id: image_sha256(cell) for shard in range(plan.shards) for cell in plan.shard(shard)}
    assert len(peaceful) == cells
    rows = load_rows(sweep, ["image_id", "status", "image_sha256"]).to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(peaceful)
    good = [row for row in rows if row["status"] == "ok"]
    assert all(row["image_sha256"] == peaceful[row["image_id"]] for row in good)
    assert len(good) == len(committed(sweep).done) == cells - failed
    assert verify(sweep, full=True).is_sound  # the files are what their rows say
    assert not sweep.claims.exists()
