"""Merging two or three checkpoints of SD 1.x's real size (2.1 GB each) against copying their bytes: time and peak memory.

python -m tests.benchmarks.merging [--folder /tmp] [--rounds 3]

Whole commands by the clock, Python's and torch's start included, against one pass over the sources and one flushed write.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from sdbatch.merge.layout import entries_of
from sdbatch.merge.model import read_likes
from sdbatch.merge.weights import Weights
from sdbatch.merge.writer import write_safetensors
from sdbatch.naming.file import to_original
from sdbatch.plan.files import find_config

BUFFER_BYTES = 2**24
METHODS = {
    "ab": (["method=weighted_sum"], ["method=weighted_sum", "blocks=GRAD_V"], ["method=slerp"]),
    "abc": (["method=add_difference"], ["method=ties"], ["method=dare"]),
}
"""By the checkpoints that they take."""


def write_checkpoint(path: Path, seed: int) -> None:
    """Random float16 numbers under all of SD 1.x's names."""
    likes = {name: like.half() for name, like in read_likes(find_config("sd1")).items()}
    generator = torch.Generator().manual_seed(seed)
    weights = Weights(likes, lambda name: torch.randn(likes[name].shape, generator=generator).half(), lambda name: None)
    write_safetensors(path, entries_of(to_original(likes, "sd1"), weights, {}), {}, lambda count: None)


def copy(sources: list[Path], target: Path) -> None:
    """Read all of the sources, write the first, flush it: the bytes that a merge must move."""
    buffer = bytearray(BUFFER_BYTES)
    with target.open("wb", buffering=0) as out:
        for place, source in enumerate(sources):
            with source.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    if place == 0:
                        out.write(memoryview(buffer)[:count])
        os.fsync(out.fileno())


def merge(folder: Path, names: str, arguments: list[str], *, knows_hashes: bool) -> Run:
    """A merge into a file that is removed again."""
    out = folder / "merged.safetensors"
    cache = folder / "cache"
    if not knows_hashes:
        shutil.rmtree(cache, ignore_errors=True)
    words = [str(folder / f"{name}.safetensors") for name in names]
    found = run([sys.executable, "-m", "sdbatch", "merge", *words, f"out={out}", *arguments], {"XDG_CACHE_HOME": str(cache)})
    out.unlink()
    return found


class Run(NamedTuple):
    """What a command took, from its start to its end."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment}) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    return Run(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=None, help="where 11 GB are free; default: the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        for seed, name in enumerate("abc"):
            # In a process of its own: a child's peak memory counts from that of the process that starts it.
            writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(folder / f"{name}.safetensors", seed))
            writer.start()
            writer.join()
        size_gb = (folder / "a.safetensors").stat().st_size / 1e9
        print(f"files of {size_gb:.2f} GB; largest tensor {49408 * 768 * 2 / 1e6:.0f} MB; {len(os.sched_getaffinity(0))} cores", flush=True)
        start = run([sys.executable, "-c", "import sdbatch.merge.checkpoint"], {})
        print(f"start-up, which is part of every merge: {start.wall_s:.1f} s, {start.peak_mb:.0f} MB", flush=True)
        for names, methods in METHODS.items():
            for arguments in methods:
                compare(folder, names, arguments, options.rounds, start.peak_mb)


def compare(folder: Path, names: str, arguments: list[str], rounds: int, start_mb: float) -> None:
    """Merges in turns with copies of the bytes that they must move: with hashes that nobody knows yet, then from memory."""
    target = folder / "copy.safetensors"
    copies: list[float] = []
    merges: dict[str, list[Run]] = {"hashes unknown": [], "hashes known": []}
    for _ in range(rounds):
        started = time.perf_counter()
        copy([folder / f"{name}.safetensors" for name in names], target)
        copies.append(time.perf_counter() - started)
        target.unlink()
        for label, runs in merges.items():
            runs.append(merge(folder, names, arguments, knows_hashes=label == "hashes known"))
    print(f"{' '.join(arguments)}: reading {len(names)} and writing one takes {min(copies):.1f} s (median {median(copies):.1f})")
    for label, runs in merges.items():
        walls = [found.wall_s for found in runs]
        print(
            f"  {label:15} {min(walls):5.1f} s, {min(walls) / min(copies):.2f} x (medians {median(walls):.1f} s, "
            f"{median(walls) / median(copies):.2f} x); {min(found.cpu_s for found in runs):.1f} s of CPU; "
            f"{max(found.peak_mb for found in runs) - start_mb:.0f} MB beyond start-up",
            flush=True,
        )


if __name__ == "__main__":
    main()
