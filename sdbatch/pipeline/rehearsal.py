"""Test patterns in place of images: the same contract without weights, torch or a GPU.

To try a job, a cluster or a crash at full size in seconds. A picture depends on the cell's `image_id` and size alone.
A prompt may hold a drill, to see what a fault does to a sweep: `drill:crash`, `drill:hang`, `drill:fail`, `drill:oom`
(more than one cell does not fit), `drill:decode` (the same, found when decoding), `drill:sticky` (a CUDA error after which
nothing works in this process), `drill:nan`, `drill:flat`, `drill:slow` (a tenth of a second a step).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdbatch.cell import Cell, Picture, Recipe
from sdbatch.errors import CellError
from sdbatch.pipeline.engine import OnStep, OutOfMemory

_BLOCKS = 4


def draw_pattern(image_id: str, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A gradient under 4 x 4 tinted blocks, both chosen by the hash of `image_id`: [height, width, 3]."""
    digest = hashlib.shake_128(image_id.encode()).digest(3 * (_BLOCKS * _BLOCKS + 1))
    colours = np.frombuffer(digest, dtype=np.uint8).reshape(-1, 3).astype(np.float32)
    blocks = colours[1:].reshape(_BLOCKS, _BLOCKS, 3)
    rows = np.arange(height) * _BLOCKS // max(height, 1)
    columns = np.arange(width) * _BLOCKS // max(width, 1)
    ramp = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None] * np.linspace(1.0, 0.2, width, dtype=np.float32)[None, :, None]
    return (0.5 * blocks[rows][:, columns] + 0.5 * ramp * colours[0]).astype(np.uint8)


def drill_of(cell: Cell) -> str | None:
    """The drill that a cell's prompt asks for."""
    found = re.search(r"drill:(\w+)", cell.prompt)
    return found[1] if found else None


def _run_drills(cells: Sequence[Cell], broken: list[str]) -> float:
    """Do what the drills of a batch say; returns the pause per step in seconds."""
    drills = [drill_of(cell) for cell in cells]
    if "crash" in drills:
        os.abort()
    if "fail" in drills:
        raise CellError("the drill says that this cell fails")
    if "oom" in drills and len(cells) > 1:
        raise OutOfMemory(f"the drill says that {len(cells)} cells do not fit")
    while "hang" in drills:
        time.sleep(1.0)
    if "sticky" in drills:
        broken.append("an illegal memory access was encountered")
    if broken:
        raise RuntimeError(f"CUDA error: {broken[0]}")
    return 0.1 if "slow" in drills else 0.0


@dataclass(frozen=True, slots=True)
class RehearsalBatch:
    """A batch of patterns; nothing is left to do but to draw them."""

    cells: tuple[Cell, ...]
    facts: dict[str, object]

    def finish(self) -> list[Picture]:
        """The patterns, in the order of the cells."""
        drills = [drill_of(cell) for cell in self.cells]
        if "decode" in drills and len(drills) > 1:
            raise OutOfMemory(f"the drill says that the decode of {len(drills)} cells does not fit")
        pictures: list[Picture] = []
        for slot, (cell, drill) in enumerate(zip(self.cells, drills, strict=True)):
            fault = drill if drill in ("nan", "flat") else None
            pixels = draw_pattern(cell.image_id, *cell.decoded_px)
            pictures.append(Picture(cell, np.zeros_like(pixels) if fault else pixels, fault, {**self.facts, "batch_slot": slot}))
        return pictures


class RehearsalEngine:
    """An engine that draws test patterns, as fast as it goes.

    Args:
        device: Recorded in the facts, used for nothing.
        threads: Recorded in the facts, used for nothing.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = device
        self.threads = threads
        self.recipe: Recipe | None = None
        self._broken: list[str] = []
        """CUDA's error, once there was one."""

    def prepare(self, recipe: Recipe) -> None:
        """Remember the recipe; no file is opened."""
        self.recipe = recipe

    def auto_batch_size(self, cell: Cell) -> int:
        """Always 8."""
        del cell
        return 8

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> RehearsalBatch:
        """Count the steps."""
        steps = max(cell.steps for cell in cells)
        pause_s = _run_drills(cells, self._broken)
        for step in range(steps):
            if pause_s:
                time.sleep(pause_s)
            on_step(step + 1, steps)
        facts: dict[str, object] = {
            "batch_size": len(cells),
            "device": self.device,
            "dtype": "none",
            "threads": self.threads or 1,
            "encode_s": 0.0,
            "denoise_s": pause_s * steps,
            "decode_s": 0.0,
            "retried_fp32": False,
            "applied_keys": {},
            "versions": {},
        }
        return RehearsalBatch(tuple(cells), facts)
