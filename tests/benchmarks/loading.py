"""Loading a full-size checkpoint against the fastest possible reads of its files, and the memory it takes.

The files are, before each measurement, `cold`: on the disk alone; `warm`: in the page cache in pages of 4 kB, as most file
systems keep them; or `large`: in the page cache as one pass of large reads leaves them, which on some file systems is pages of
up to 2 MB, and looking at one byte in each 4 kB of them says next to nothing.

    read    through one buffer of 8 MB
    touch   mapped, one byte of each 4 kB looked at
    scan    mapped, every byte looked at
    cast    mapped, every tensor brought to the dtype of the model: the least that can be done where that is another one
    first   a process's first load of files never seen: it looks at every value itself, builds the modules, reads the vocabulary
    load    a later one: the vocabulary, and that all values are numbers, are remembered; its weights are touched afterwards
    used    the same, every byte of its weights looked at afterwards

python -m tests.benchmarks.loading [--folder FOLDER] [--model sd1] [--stored float32] [--dtype float32] [--layout safetensors]
                                   [--rounds 3] [--state cold warm large]

The folder keeps the files for the next time (4.3 GB). Every load runs in a process of its own, beside the reads it is compared with.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sdbatch.pipeline.build import build_engine

build_engine("diffusers")  # as workers do: what importing made is no garbage to search for

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from sdbatch.adapters.read import map_tensors  # noqa: E402
from sdbatch.cell import Recipe, WeightFile  # noqa: E402
from sdbatch.families import find_family  # noqa: E402
from sdbatch.pipeline.assemble import load_tokenizer  # noqa: E402
from sdbatch.pipeline.configs import Configs  # noqa: E402
from sdbatch.pipeline.device import DTYPES, Device  # noqa: E402
from sdbatch.pipeline.model import Model  # noqa: E402
from sdbatch.weights.folder_header import list_weights  # noqa: E402
from tests.full.model import write_checkpoint  # noqa: E402
from tests.pipeline.models import write_model  # noqa: E402

BASES = {"first": ("read", "scan"), "load": ("read", "touch"), "used": ("read", "scan")}
"""Load -> the reads that it is compared with."""
Costs = dict[str, float]
"""Seconds by the clock and of CPU, and GB of memory."""

BUFFER_BYTES = 8 * 2**20
PIECE_BYTES = 2**20


def prepare_files(asked: argparse.Namespace) -> tuple[Recipe, list[Path]]:
    """The recipe and its files, which are written unless they are there."""
    recipe = write_checkpoint(asked.model, asked.folder, DTYPES[asked.stored], asked.dtype)
    source = Path(recipe.checkpoint.path)
    path = source.with_suffix({"safetensors": ".safetensors", "ckpt": ".ckpt", "folder": ""}[asked.layout])
    if not path.exists():
        if asked.layout == "ckpt":
            torch.save({"state_dict": map_tensors(recipe.checkpoint).tensors}, path)
        else:
            subprocess.run([sys.executable, "-m", "sdbatch", "convert", str(source), f"out={path}"], check=True, capture_output=True)
    files = [file for _, file in list_weights(path)] if path.is_dir() else [path]
    return replace(recipe, checkpoint=WeightFile(path.stem, str(path), str(path))), files


def bring_to(state: str, paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            descriptor, size = file.fileno(), path.stat().st_size
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            match state:
                case "warm":
                    for at in range(0, size, PIECE_BYTES):
                        os.posix_fadvise(descriptor, at, PIECE_BYTES, os.POSIX_FADV_WILLNEED)
                        os.pread(descriptor, 1, max(0, at - 16 * PIECE_BYTES))
                case "large":
                    read([path])
                case _:
                    pass


def read(paths: Iterable[Path]) -> None:
    """Whole files through one buffer."""
    buffer = bytearray(BUFFER_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def map_whole(paths: Iterable[Path]) -> list[Tensor]:
    return [torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8) for path in paths]


def touch(tensor: Tensor) -> None:
    """Look at one byte of each page."""
    if tensor.numel():
        tensor.detach().view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()


def scan(tensor: Tensor) -> None:
    """Look at every byte, as fast as memory gives them."""
    flat = tensor.detach().view(-1).view(torch.uint8)
    words = len(flat) // 8 * 8
    flat[:words].view(torch.int64).sum()
    flat[words:].sum()


def do(way: str, recipe: Recipe, files: Sequence[Path], model: Model) -> list[Tensor]:
    """Returns what is mapped or made: to let it go takes time, too, which is not measured."""
    held: list[Tensor] = []
    match way:
        case "read":
            read(files)
        case "touch" | "scan":
            held = map_whole(files)
            for mapped in held:
                touch(mapped) if way == "touch" else scan(mapped)
        case "cast":
            mapped = [map_tensors(WeightFile(file.name, str(file), "")).tensors for file in files]
            held = [tensor.to(DTYPES[recipe.dtype]) for tensors in mapped for tensor in tensors.values()]
        case _:
            model.prepare(recipe)
            held = [weight for module in (*model.components.values(), model.vae) for weight in module.parameters()]
            for weight in held:
                scan(weight) if way == "used" else touch(weight)
    return held


def measure(way: str, state: str, asked: argparse.Namespace) -> None:
    """One load in this process beside its reads; prints the least of each one's seconds and its memory."""
    torch.set_num_threads(1)
    recipe, files = prepare_files(asked)
    with tempfile.TemporaryDirectory() as scratch:
        Model(Device("cpu")).prepare(write_model(Path(scratch)).recipe())  # what the libraries do once
    if way != "first":
        family = find_family(recipe.family)
        for encoder in family.encoders:
            load_tokenizer(encoder, recipe, Configs(recipe, family))
    found: dict[str, list[Costs]] = {}
    for _ in range(1 if way == "first" or state == "cold" else 3):
        for name in (*BASES[way], *(["cast"] if asked.dtype != asked.stored else []), way):
            bring_to("cold", files) if state == "cold" else read(files)
            found.setdefault(name, []).append(take_time(name, recipe, files))
    print(json.dumps({name: least(costs) for name, costs in found.items()}))


def take_time(way: str, recipe: Recipe, files: Sequence[Path]) -> Costs:
    model = Model(Device("cpu"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is taken anew
    before = peak_gb()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    held = do(way, recipe, files, model)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    memory_gb = peak_gb() - before
    del held
    model.close()
    return {"wall_s": wall_s, "cpu_s": cpu_s, "memory_gb": memory_gb}


def peak_gb() -> float:
    """Memory of this process at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


def least(costs: Sequence[Costs]) -> Costs:
    return {key: min(cost[key] for cost in costs) for key in costs[0]}


def run(way: str, state: str, asked: argparse.Namespace) -> dict[str, Costs]:
    """One load in a process of its own; `first` remembers nothing of the files."""
    command = [sys.executable, "-m", "tests.benchmarks.loading", "--one", way, "--state", state]
    for name in ("folder", "model", "stored", "dtype", "layout"):
        command += [f"--{name}", str(getattr(asked, name))]
    with tempfile.TemporaryDirectory() as nothing_known:
        cache = nothing_known if way == "first" else str(asked.folder / "cache")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache}
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def compare(asked: argparse.Namespace) -> None:
    _, files = prepare_files(asked)
    size_gb = sum(path.stat().st_size for path in files) / 1e9
    run("load", "warm", asked)  # the libraries' own files
    for state in asked.state:
        bring_to(state, files)
        for way in BASES:
            rounds = [run(way, state, asked) for _ in range(asked.rounds)]
            best = {name: least([costs[name] for costs in rounds]) for name in rounds[0]}
            for name, cost in best.items():
                ratios = [[costs[way][key] / costs[name][key] for costs in rounds] for key in ("wall_s", "cpu_s")]
                times = "" if name == way else " / ".join(", ".join(f"{ratio:.2f}" for ratio in sorted(each)) for each in ratios)
                print(
                    f"{state} {way}: {name:5} {cost['wall_s']:6.2f} s, {cost['cpu_s']:5.2f} s of CPU, {cost['memory_gb']:5.2f} GB of memory"
                    + (f"; {way} takes by the clock / in CPU {times} times" if times else f" for {size_gb:.2f} GB of files"),
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", default="sd1")
    parser.add_argument("--stored", choices=DTYPES, default="float32")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layout", choices=["safetensors", "ckpt", "folder"], default="safetensors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--state", choices=["cold", "warm", "large"], nargs="+", default=["cold", "warm", "large"])
    parser.add_argument("--one", choices=[*BASES])
    asked = parser.parse_args()
    if asked.one:
        measure(asked.one, asked.state[0], asked)
    elif asked.folder:
        compare(asked)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            asked.folder = Path(scratch)
            compare(asked)
