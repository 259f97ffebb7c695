"""What the worker asks of a pipeline. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from sdbatch.cell import Cell, Picture, Recipe
from sdbatch.errors import CellError

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

    Seeds, prompts, guidance scales, adapter strengths, clip skips and all pictures that are given may differ inside it.
    """
    strength = cell.source.strength if cell.source else None
    return (cell.recipe, cell.width, cell.height, cell.steps, cell.sampler, len(cell.controls), cell.task, strength, cell.hires)
