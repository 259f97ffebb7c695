"""Sweeps of test patterns that last long enough to be disturbed, and what must be true of them at the end."""

from __future__ import annotations

from pathlib import Path

from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.verify import verify
from tests.conftest import BASE

REHEARSAL = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "out=sweep", "width=64", "height=64")
SLOW = (*REHEARSAL, "prompt=drill:slow", "batch_size=4", "steps=5", "-m")
"""Half a second for four images."""


def made(folder: Path) -> int:
    """Images that are committed now."""
    return len(committed(SweepFolder(folder)).done)


def check_exact(folder: Path, cells: int, failed: int = 0) -> None:
    """Every cell of the plan is there once, the image of each success with the bytes its row says, and nobody is at work."""
    sweep = SweepFolder(folder)
    planned = sorted(image_id for ids, _, _ in PlanFile(sweep.plan).iter_keys() for image_id in texts_of(ids))
    assert len(planned) == cells
    assert sorted(load_rows(sweep, ["image_id"])["image_id"].to_pylist()) == planned
    assert len(committed(sweep).done) == cells - failed
    assert verify(sweep, full=True).is_sound
    assert not sweep.claims.exists()
