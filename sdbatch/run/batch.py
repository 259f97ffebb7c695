"""Which cells are denoised together, and which are committed together: functions of the plan, so that all workers agree."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sdbatch.cell import Cell
from sdbatch.pipeline.engine import batch_key
from sdbatch.plan.plan import HUGE_PLAN
from sdbatch.results.folder import FLAT_LIMIT


def batch_size_name(cell: Cell) -> str:
    """Under which name the sweep keeps its batch size for cells like this one."""
    width, height = cell.decoded_px
    return f"batch_size_{cell.recipe.family}_{width}x{height}"


@dataclass(frozen=True)
class Batch:
    """Cells to denoise together, and the block they are committed with."""

    cells: list[Cell]
    block: int
    is_last: bool
    """Whether the block needs no further batch."""


def block_cells(plan_size: int, output_format: str) -> int:
    """How many cells are committed together at least. A function of the plan's size and the output alone.

    Of a small sweep every batch is; of a large one as many as keep files and flushes few beside the images.
    """
    if plan_size <= FLAT_LIMIT and output_format == "files":
        return 1
    return 256 if plan_size > HUGE_PLAN else 64


def cut_blocks(cells: Sequence[Cell], batch_size: int, least: int, done: Container[str]) -> list[Batch]:
    """The batches of a shard that have something to make, with their blocks of `least` cells or a little more."""
    numbered: list[tuple[int, list[Cell]]] = []
    block = filled = 0
    for batch in batches(cells, batch_size):
        numbered.append((block, batch))
        filled += len(batch)
        if filled >= least:
            block, filled = block + 1, 0
    todo = [(block, batch) for block, batch in numbered if any(cell.image_id not in done for cell in batch)]
    following = [block for block, _ in todo[1:]] + [-1]
    return [Batch(batch, block, block != after) for (block, batch), after in zip(todo, following, strict=True)]


def batches(cells: Sequence[Cell], batch_size: int) -> Iterator[list[Cell]]:
    """The batches of a shard: runs of cells that may share one, cut at the batch size.

    A function of the plan and the batch size alone, so that a resumed sweep denoises the same batches.
    """
    for _, run in groupby(cells, key=batch_key):
        whole = list(run)
        for start in range(0, len(whole), batch_size):
            yield whole[start : start + batch_size]
