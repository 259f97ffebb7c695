"""Making some cells, whatever it takes: halves where memory is short, alone where one fails, its reason where nothing helps."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from sdbatch.cell import Cell
from sdbatch.errors import SdbatchError
from sdbatch.pipeline.engine import Engine, OnStep, OutOfMemory, PendingBatch
from sdbatch.results.writer import Failure, Outcome

log = logging.getLogger(__name__)

_STICKY = ("CUDA error", "CUDA driver error", "cuDNN error")

Started = list[tuple[list[Cell], PendingBatch | str]]
"""Batches that are denoised, and why those are not that could not be."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An engine, and what is done when it fails."""

    engine: Engine
    on_step: OnStep
    on_oom: str
    """`halve`, or `fail`."""

    def start(self, cells: list[Cell]) -> Started:
        """Denoise, halving on out-of-memory (unless `on_oom` is `fail`) and isolating a cell that fails."""
        try:
            self.engine.prepare(cells[0].recipe)
            return [(cells, self.engine.start(cells, self.on_step))]
        except Exception as error:
            reason = self._reason(error, len(cells))
        return self._start_halves(cells) if reason is None else [(cells, reason)]

    def finish(self, started: Started) -> list[Outcome]:
        """Decode; a batch whose decode fails is denoised again in halves."""
        found: list[Outcome] = []
        for cells, pending in started:
            reason = pending if isinstance(pending, str) else None
            if not isinstance(pending, str):
                try:
                    found += pending.finish()
                    continue
                except Exception as error:
                    reason = self._reason(error, len(cells))
            found += self.finish(self._start_halves(cells)) if reason is None else [Failure(cell, reason) for cell in cells]
        return found

    def wait(self, started: Started) -> list[Outcome]:
        """Decode; raises what `finish` sees to."""
        found: list[Outcome] = []
        for cells, pending in started:
            found += [Failure(cell, pending) for cell in cells] if isinstance(pending, str) else pending.finish()
        return found

    def _start_halves(self, cells: list[Cell]) -> Started:
        middle = math.ceil(len(cells) / 2)
        return self.start(cells[:middle]) + self.start(cells[middle:])

    def _reason(self, error: Exception, count: int) -> str | None:
        """Why so many cells cannot be made; None when fewer at once may do better. Raises an error that breaks the process."""
        if is_sticky(error):
            raise error
        if isinstance(error, OutOfMemory):
            if count == 1 or self.on_oom == "fail":
                return f"out of memory with batch size {count}: {error}"
            log.warning("out of memory with batch size %d, halving it", count)
            return None
        if not isinstance(error, SdbatchError):
            log.error("a batch of %d failed", count, exc_info=error)
        return describe(error) if count == 1 else None


def is_sticky(error: Exception) -> bool:
    """Whether a CUDA context is broken for good: only a new process helps."""
    said = str(error)
    return isinstance(error, RuntimeError) and any(sign in said for sign in _STICKY) and "out of memory" not in said


def describe(error: Exception) -> str:
    """An error in one line, with its kind unless it is one of ours."""
    line = next(iter(str(error).splitlines()), "no message")
    return str(error) if isinstance(error, SdbatchError) else f"{type(error).__name__}: {line}"
