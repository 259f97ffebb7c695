"""What the worker asks of a pipeline, and the table of the two that answer. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from sdbatch.cell import Cell, Picture, Recipe
from sdbatch.errors import CellError, ConfigError, did_you_mean

OnStep = Callable[[int, int], None]
"""Called after each model call with (done, total): the heartbeat."""


class OutOfMemory(CellError):
    """The batch did not fit the device's memory; what it took was given back. Try again with half of it."""


class PendingBatch(Protocol):
    """A batch whose denoising has been started."""

    def finish(self) -> list[Picture]:
        """Decode and hand over, in the order of the cells. May run beside the next batch's denoising.

        Raises:
            OutOfMemory: the decode did not fit.
        """
        ...


class Engine(Protocol):
    """Turns cells into pictures. It keeps weights between calls, one recipe at a time."""

    def prepare(self, recipe: Recipe) -> None:
        """Have the recipe's weights in memory with the least work: keep what is equal, swap what differs.

        Raises:
            WeightFileError: a file is missing, damaged or does not fit; the engine then holds no recipe.
        """
        ...

    def auto_batch_size(self, cell: Cell) -> int:
        """How many cells like this one to denoise at once; the same answer on every device of the same model."""
        ...

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> PendingBatch:
        """Denoise cells of the prepared recipe that share their `batch_key`.

        Raises:
            OutOfMemory: the batch did not fit.
        """
        ...


def batch_key(cell: Cell) -> Hashable:
    """Cells with equal keys may share a denoising batch.

    Seeds, prompts, guidance scales, adapter strengths, clip skips and control images may differ inside it.
    """
    return (cell.recipe, cell.width, cell.height, cell.steps, cell.sampler, len(cell.controls))


def build_engine(name: str, device: str = "cpu", threads: int | None = None) -> Engine:
    """The engine of a recipe's `engine`, on one device (`cpu`, `cuda`, `cuda:1`).

    Side effects: sets OMP_WAIT_POLICY for this process unless it is set; without effect where torch is loaded already.

    Raises:
        ConfigError: no such engine.
    """
    match name:
        case "diffusers":
            # Read when torch is loaded. Threads that wait spinning burn three times the CPU time of the work on a busy machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            from sdbatch.pipeline.diffusers_engine import DiffusersEngine  # torch and diffusers: 6 s of CPU

            return DiffusersEngine(device, threads)
        case "rehearsal":
            from sdbatch.pipeline.rehearsal import RehearsalEngine  # beside it for symmetry

            return RehearsalEngine(device, threads)
        case _:
            raise ConfigError(f"engine: there is no engine {name!r}. {did_you_mean(name, ('diffusers', 'rehearsal'))}")
