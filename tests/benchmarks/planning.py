"""Time and memory of planning 10,000 and 1,000,000 cells, beyond start-up.

python -m tests.benchmarks.planning
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (1, 10_000, 1_000_000)


def plan(cells: int) -> None:
    """Plan so many cells in this process and write the plan."""
    from sdbatch.config.arguments import read_arguments
    from sdbatch.plan.store import write_plan
    from sdbatch.run.prepare import prepare

    started_s = time.perf_counter()
    axes = ["lora=[style_a]", "lora.style_a.weight=0,0.5,1,1.5", "prompt=a fox,a dog,a cat,an owl,a frog"]
    sweep = [*axes, f"seed=range(0,{cells // 20})", "-m"] if cells > 1 else []
    job = prepare(read_arguments(["engine=rehearsal", *sweep]))
    assert len(job.plan) == cells
    path = Path("plan.parquet")
    write_plan(job.plan, path)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{cells:>9} cells: {time.perf_counter() - started_s:6.2f} s, {path.stat().st_size / 1e6:6.1f} MB on disk, peak {peak_gb:.2f} GB",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        plan(int(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            for size in SIZES:
                subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.planning", str(size)],
                    cwd=scratch,
                    check=True,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                )
