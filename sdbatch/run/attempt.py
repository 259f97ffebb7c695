"""Denoising some cells, whatever it takes: halves where memory is short, alone where one fails, its reason where nothing helps."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from sdbatch.cell import Cell
from sdbatch.errors import CellError
from sdbatch.pipeline.engine import Engine, OnStep, OutOfMemory, PendingBatch
from sdbatch.results.writer import Failure, Outcome
from sdbatch.run.stop import Stopped

log = logging.getLogger(__name__)

Started = list[tuple[list[Cell], PendingBatch | str]]
"""Batches that are denoised, and why those are not that could not be."""


def start(engine: Engine, cells: list[Cell], on_step: OnStep, on_oom: str) -> Started:
    """Denoise, halving on out-of-memory (unless `on_oom` is `fail`) and isolating a cell that fails."""
    try:
        return [(cells, engine.start(cells, on_step))]
    except OutOfMemory as error:
        if len(cells) == 1 or on_oom == "fail":
            return [(cells, f"out of memory with batch size {len(cells)}: {error}")]
        log.warning("out of memory with batch size %d, halving it", len(cells))
    except CellError as error:
        if len(cells) == 1:
            return [(cells, str(error))]
    except Stopped:
        raise
    except Exception as error:
        if is_sticky(error):
            raise
        log.exception("a batch of %d failed", len(cells))
        if len(cells) == 1:
            return [(cells, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")]
    middle = math.ceil(len(cells) / 2)
    return start(engine, cells[:middle], on_step, on_oom) + start(engine, cells[middle:], on_step, on_oom)


def is_sticky(error: Exception) -> bool:
    """Whether a CUDA context is broken for good: only a new process helps."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


@dataclass
class Waiting:
    """A batch whose denoising is done and whose decoding overlaps the next."""

    place: tuple[int, int]
    """Shard and block."""
    started: Started
    attempts: int
    done: set[str]
    """Ids that were committed before: cells that are denoised again only to keep the batch whole."""
    is_last: bool
    """Whether its block is complete with it."""

    def outcomes(self) -> list[Outcome]:
        """Decode."""
        found: list[Outcome] = []
        for cells, pending in self.started:
            if isinstance(pending, str):
                found += [Failure(cell, pending) for cell in cells]
                continue
            try:
                found += pending.finish()
            except CellError as error:
                found += [Failure(cell, str(error)) for cell in cells]
        return found
