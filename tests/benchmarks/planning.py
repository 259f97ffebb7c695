"""Time and memory of planning 1 to 10,000,000 cells, and of writing the plan: memory must not grow with their number.

python -m tests.benchmarks.planning [CELLS ...]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (1, 10_000, 1_000_000, 10_000_000)


def plan(cells: int) -> None:
    """Plan so many cells in this process and write the plan."""
    from sdbatch.config.arguments import read_arguments
    from sdbatch.plan.store import write_plan
    from sdbatch.run.prepare import prepare

    start_s = cpu_s()
    axes = ["lora=[style_a]", "lora.style_a.weight=0,0.5,1,1.5", "prompt=a fox,a dog,a cat,an owl,a frog"]
    sweep = [*axes, f"seed=range(0,{cells // 20})", "-m"] if cells > 1 else []
    job = prepare(read_arguments(["engine=rehearsal", *sweep]))
    assert len(job.plan) == cells
    planned_s = cpu_s()
    path = Path("plan.parquet")
    write_plan(job.plan, path)
    told = f"{planned_s - start_s:6.2f} s CPU planned, {cpu_s() - planned_s:6.2f} s written"
    print(f"{cells:>11,} cells: {told}, {path.stat().st_size / 1e6:7.1f} MB on disk, {peak_mb():.0f} MB at the peak", flush=True)


def cpu_s() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """The most memory this process has held. Not ru_maxrss, which begins with what the parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--here":
        plan(int(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            for size in map(int, sys.argv[1:] or SIZES):
                subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.planning", "--here", str(size)],
                    cwd=scratch,
                    check=True,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                )
