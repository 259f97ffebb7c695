"""What changing only a LoRA strength, only the seed, or only the prompt costs beyond the batch.

python -m tests.benchmarks.strength
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdbatch.cell import Cell, Strength
from sdbatch.config.arguments import read_arguments
from sdbatch.pipeline.build import build_engine
from sdbatch.pipeline.engine import Engine
from sdbatch.run.prepare import prepare

ROUNDS = 20


def cells_of() -> list[Cell]:
    """Eight seeds of one prompt with one LoRA."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        job = prepare(read_arguments(["lora=[style_b]", "lora.style_b.text_encoder_weight=0", "seed=range(0,8)", "steps=4", "-m"]))
        os.chdir(here)
    return [job.plan.cell(index) for index in range(8)]


def timed(engine: Engine, batches: list[list[Cell]]) -> float:
    """CPU milliseconds of a batch, the median over the batches."""
    found: list[float] = []
    for batch in batches:
        started_s = time.process_time()
        engine.start(batch, lambda done, total: None).finish()
        found.append((time.process_time() - started_s) * 1000)
    return statistics.median(found)


def main() -> None:
    cells = cells_of()
    engine = build_engine("diffusers", "cpu", 1)
    engine.prepare(cells[0].recipe)
    changes: dict[str, Callable[[Cell, int], Cell]] = {
        "nothing": lambda cell, turn: replace(cell, strengths=(Strength(0.5, 0.0),)),
        "strength": lambda cell, turn: replace(cell, strengths=(Strength(0.3 + 0.01 * turn, 0.0),)),
        "seed": lambda cell, turn: replace(cell, seed=cell.seed + 100 * turn),
        "prompt": lambda cell, turn: replace(cell, prompt=f"a dog {turn}"),
    }
    timed(engine, [cells] * 3)
    told = {name: timed(engine, [[change(cell, turn) for cell in cells] for turn in range(ROUNDS)]) for name, change in changes.items()}
    for name, cpu_ms in told.items():
        print(f"a batch of 8, {name:<9} changed: {cpu_ms:7.1f} ms CPU, {cpu_ms - told['nothing']:+6.1f} ms beyond the batch")


if __name__ == "__main__":
    main()
