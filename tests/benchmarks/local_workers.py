"""Two local workers on two cores against one worker on one core: the same images, how much faster.

    python -m tests.benchmarks.local_workers [--rounds 2] [--cells 320] [--size 128]

Each worker computes with one thread, so that both runs must make the same bytes. On a machine that is busy with other
things only the CPU time says something: what two workers take more of it than one is lost to sharing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.measure import Cost, measure

CORES = 2


def run(folder: Path, workers: int, arguments: argparse.Namespace) -> Cost:
    """All images with so many workers, one core each."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable, "-m", "sdbatch", "-m"]
    command += [f"seed=range(0,{arguments.cells})", f"width={arguments.size}", f"height={arguments.size}", f"steps={arguments.steps}"]
    command += ["out=sweep", "memory.device=cpu", "memory.threads=1", "batch_size=8", "output.grid=false", "tracking=none"]
    return measure([*command, f"hydra.launcher.workers={workers}"], folder)


def images(folder: Path) -> dict[str, str]:
    """Name of each image -> SHA-256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "sweep/images").rglob("*.png")}


def main() -> int:
    """Run in turns and compare. Returns 1 when the images differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cells", type=int, default=320)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    ratios: list[float] = []
    root = Path(tempfile.mkdtemp(prefix="local-workers-"))
    try:
        for number in range(arguments.rounds):
            folders = {workers: root / f"{number}-{workers}" for workers in (1, CORES)}
            costs = {workers: run(folder, workers, arguments) for workers, folder in folders.items()}
            one, all_ = costs[1], costs[CORES]
            ratios.append(one.wall_s / all_.wall_s)
            print(f"1 worker {one.wall_s:.1f} s, {CORES} workers {all_.wall_s:.1f} s: {ratios[-1]:.2f} times as fast")
            print(f"CPU {one.cpu_s:.1f} s, {all_.cpu_s:.1f} s: {all_.cpu_s / one.cpu_s:.2f} times as much")
            if images(folders[1]) != images(folders[CORES]) or len(images(folders[1])) != arguments.cells:
                print("the images differ")
                return 1
    finally:
        shutil.rmtree(root)
    print(f"{CORES} workers on {CORES} cores / one worker on one core, same images: median {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
