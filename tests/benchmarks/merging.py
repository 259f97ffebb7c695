"""Merging two or three checkpoints of SD 1.x's real size (2.1 GB each) against copying their bytes: time and peak memory.

python -m tests.benchmarks.merging [--folder /tmp]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of CPU time."""
    started, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - worked


def merge(folder: Path, names: str, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds of the merge by the clock, CPU seconds of the whole command, its peak memory in MB."""
    out = folder / "merged.safetensors"
    words = [str(folder / f"{name}.safetensors") for name in names]
    command = [sys.executable, "-m", "sdbatch", "merge", *words, f"out={out}", *arguments]
    said, cpu_s, peak_mb = run(command, {"XDG_CACHE_HOME": str(folder / "cache")})
    out.unlink()
    return float(said.split(" in ")[1].split()[0]), cpu_s, peak_mb


def run(command: list[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """What a command printed, its CPU seconds and its peak memory in MB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    return said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=None, help="where 11 GB are free; default: the system's temporary folder")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as scratch:
        folder = Path(scratch)
        for seed, name in enumerate("abc"):
            # In a process of its own: a child's peak memory counts from that of the process that starts it.
            writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(folder / f"{name}.safetensors", seed))
            writer.start()
            writer.join()
        size_gb = (folder / "a.safetensors").stat().st_size / 1e9
        print(f"files of {size_gb:.2f} GB; largest tensor {49408 * 768 * 2 / 1e6:.0f} MB; {len(os.sched_getaffinity(0))} cores", flush=True)
        _, start_cpu_s, start_mb = run([sys.executable, "-c", "import sdbatch.merge.checkpoint"], {})
        for names, methods in METHODS.items():
            merge(folder, names, methods[0])  # hashes the files, which is remembered
            for arguments in methods:
                compare(folder, names, arguments, start_cpu_s, start_mb)


def compare(folder: Path, names: str, arguments: list[str], start_cpu_s: float, start_mb: float) -> None:
    """A merge beside the copy of the bytes that it must move, twice; the better of each."""
    target = folder / "copy.safetensors"
    copies: list[tuple[float, float]] = []
    merges: list[tuple[float, float, float]] = []
    for _ in range(2):
        copies.append(timed(lambda: copy([folder / f"{name}.safetensors" for name in names], target)))
        target.unlink()
        merges.append(merge(folder, names, arguments))
    copy_s, copy_cpu_s = (min(column) for column in zip(*copies, strict=True))
    wall_s, cpu_s, peak_mb = (min(column) for column in zip(*merges, strict=True))
    cpu_s -= start_cpu_s
    print(
        f"{' '.join(arguments):36} {wall_s:5.1f} s ({wall_s / copy_s:.2f} x reading {len(names)} and writing one), "
        f"{cpu_s:.1f} s of CPU beyond start-up ({cpu_s / copy_cpu_s:.2f} x); "
        f"peak {peak_mb:.0f} MB, {peak_mb - start_mb:.0f} MB beyond start-up",
        flush=True,
    )


if __name__ == "__main__":
    main()
