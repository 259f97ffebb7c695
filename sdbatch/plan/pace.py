"""How fast images were made in the sweeps beside a new one: what its time can be told by before it runs."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from sdbatch.results.commit import read_part
from sdbatch.results.folder import SweepFolder
from sdbatch.results.schema import OK

SWEEPS = 20
"""So many sweeps are looked at, the newest first."""
SPENT = ("encode", "denoise", "decode")
SECOND_PASS = ("task_steps", "task_strength", "task_width", "task_height")
COLUMNS = ["status", "checkpoint_sha256", "steps", "width", "height", *SECOND_PASS, "device", *(f"{what}_s" for what in SPENT)]


@dataclass(frozen=True)
class Pace:
    """What images of a checkpoint took."""

    s_per_step_px: float
    """Seconds of one device for a step of a pixel, text encoding and decoding shared out over the steps."""
    device: str
    sweep: Path
    """Where that was measured."""


def find_pace(out: Path, checkpoints: Collection[str]) -> Pace | None:
    """The pace in the newest part of a sweep, in this folder or beside it, that has images of these checkpoints; by SHA-256."""
    for sweep, part in _newest(out):
        try:
            rows = [row for row in read_part(part, COLUMNS).to_pylist() if row["status"] == OK and row["checkpoint_sha256"] in checkpoints]
        except (OSError, pa.ArrowException):
            continue  # damaged, as `sdbatch verify` tells
        if paces := [sum(row[f"{what}_s"] for what in SPENT) / work for row in rows if (work := work_of(row))]:
            return Pace(median(paces), rows[0]["device"], sweep)
    return None


def work_of(row: Mapping[str, Any]) -> float:
    """Steps times pixels: those of a hires fix's second pass included, of a picture that is given those that its strength runs."""
    second = math.prod(row[key] or 0 for key in SECOND_PASS)
    share = 1 if row["task_strength"] is None or row["task_width"] is not None else row["task_strength"]
    return row["steps"] * share * row["width"] * row["height"] + second


def _newest(out: Path) -> Iterator[tuple[Path, Path]]:
    """(folder, last part of its rows) of sweeps, this one first."""
    beside = [folder for folder in out.parent.iterdir() if (folder / "rows").is_dir()] if out.parent.is_dir() else []
    beside.sort(key=lambda folder: (folder != out, -(folder / "rows").stat().st_mtime))
    for folder in beside[:SWEEPS]:
        if parts := SweepFolder(folder).parts():
            yield folder, parts[-1]
