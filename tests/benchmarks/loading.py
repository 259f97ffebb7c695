"""Loading a full-size SD 1.5 checkpoint against the fastest possible read of its file, and the memory it takes.

`cold` is from the disk, the file dropped from the page cache first; `warm` is from the page cache. `map` maps the file and looks
at each of its pages; `read` goes through one buffer of 8 MB. `first` loads it as one never seen: looks at every value, builds the
modules and the tokenizer; `load` is every later one, when that all values are numbers is remembered. After either each page of
every weight is looked at, so that nothing is left to be read by the first picture.

python -m tests.benchmarks.loading [--folder FOLDER] [--rounds 3] [--temperature cold]

The folder keeps the 4.3 GB checkpoint for the next time.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbatch.pipeline.device import Device
from sdbatch.pipeline.model import Model
from tests.full.model import write_checkpoint
from tests.pipeline.models import write_model

BUFFER_BYTES = 8 * 2**20


def read(path: Path) -> None:
    """The whole file through one buffer."""
    buffer = bytearray(BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def look(pages: Tensor) -> None:
    """One byte of each page."""
    if pages.numel():
        pages.detach().view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()


def drop_from_cache(path: Path) -> None:
    """Let the kernel forget the file's pages, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(way: str, folder: Path, temperature: str) -> None:
    """One read or load in this process; prints its seconds and the memory beyond what the program itself takes."""
    torch.set_num_threads(1)
    recipe = write_checkpoint("sd1", folder, torch.float32)
    path = Path(recipe.checkpoint.path)
    with tempfile.TemporaryDirectory() as scratch:
        Model(Device("cpu")).prepare(write_model(Path(scratch)).recipe())  # what the libraries do once
    model = Model(Device("cpu"))
    drop_from_cache(path) if temperature == "cold" else read(path)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    match way:
        case "read":
            read(path)
        case "map":
            look(torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8))
        case _:
            model.prepare(recipe)
            for module in (*model.components.values(), model.vae):
                for weight in module.parameters():
                    look(weight)
    told = {
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "memory_gb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1e6,
        "file_gb": path.stat().st_size / 1e9,
    }
    print(json.dumps(told))


def run(way: str, folder: Path, temperature: str) -> dict[str, Any]:
    """One read or load in a process of its own; `first` remembers nothing of the file."""
    with tempfile.TemporaryDirectory() as nothing_known:
        cache = nothing_known if way == "first" else str(folder / "cache")
        return _run("load" if way == "first" else way, folder, temperature, cache)


def _run(way: str, folder: Path, temperature: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.loading", "--one", way, "--folder", str(folder), "--temperature", temperature]
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache}
    ).stdout
    return json.loads(output.splitlines()[-1])


def compare(folder: Path, rounds: int, temperatures: Sequence[str]) -> None:
    run("load", folder, "warm")  # writes the checkpoint the first time, and loads the library's own files
    for temperature in temperatures:
        found: dict[str, list[dict[str, Any]]] = {"read": [], "map": [], "first": [], "load": []}
        for _ in range(rounds):
            for way, costs in found.items():
                costs.append(run(way, folder, temperature))
        for way, costs in found.items():
            best = {key: min(cost[key] for cost in costs) for key in costs[0]}
            print(
                f"{temperature} {way}: {best['wall_s']:6.2f} s, {best['cpu_s']:5.2f} CPU s, "
                f"{best['memory_gb'] - best['file_gb']:+.2f} GB of memory to the file's size",
                flush=True,
            )
        for way in ("first", "load"):
            for base in ("read", "map"):
                wall, cpu = (min(cost[key] for cost in found[way]) / min(cost[key] for cost in found[base]) for key in ("wall_s", "cpu_s"))
                print(f"{temperature} {way} / {base}: time {wall:.2f}, CPU {cpu:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=["read", "map", "load"])
    parser.add_argument("--temperature", choices=["cold", "warm"])
    asked = parser.parse_args()
    temperatures = [asked.temperature] if asked.temperature else ["cold", "warm"]
    if asked.one:
        measure(asked.one, asked.folder, asked.temperature)
    elif asked.folder:
        compare(asked.folder, asked.rounds, temperatures)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(Path(scratch), asked.rounds, temperatures)
