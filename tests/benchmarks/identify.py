"""What `sdbatch inspect` and `sdbatch models` cost: full-size headers over sparse files, cold and from memory.

    python -m tests.benchmarks.identify [--files 1000]

Hashes aside: they read the whole file, once.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sdbatch.weights import spread
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.identify import identify
from sdbatch.weights.index import Index
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

TEXT = [
    *(("self_attn_q_proj", 768, 768), ("self_attn_k_proj", 768, 768), ("self_attn_v_proj", 768, 768)),
    *(("self_attn_out_proj", 768, 768), ("mlp_fc1", 3072, 768), ("mlp_fc2", 768, 3072)),
]


def transformer_block(prefix: str, width: int, cross: int) -> d.Modules:
    """The ten linear layers of one block of a UNet's attention."""
    attention = [(f"{prefix}_attn{n}_to_{x}", width, width if n == 1 or x == "q" else cross) for n in (1, 2) for x in "qkv"]
    rest = [
        ("attn1_to_out_0", width, width),
        ("attn2_to_out_0", width, width),
        ("ff_net_0_proj", 8 * width, width),
        ("ff_net_2", width, 4 * width),
    ]
    return [*attention, *((f"{prefix}_{name}", out, into) for name, out, into in rest)]


def sd1_lora() -> tuple[d.Tensors, dict[str, float]]:
    """264 modules as kohya's trainer writes them for SD 1.x: 792 tensors."""
    modules: d.Modules = []
    places = [(f"down_blocks_{block}_attentions_{place}", 320 * 2**block) for block in range(3) for place in range(2)]
    places += [("mid_block_attentions_0", 1280)]
    places += [(f"up_blocks_{block}_attentions_{place}", 1280 // 2 ** (block - 1)) for block in range(1, 4) for place in range(3)]
    for place, width in places:
        modules += [(f"lora_unet_{place}_proj_{side}", width, width) for side in ("in", "out")]
        modules += transformer_block(f"lora_unet_{place}_transformer_blocks_0", width, 768)
    modules += [(f"lora_te_text_model_encoder_layers_{layer}_{name}", out, into) for layer in range(12) for name, out, into in TEXT]
    return d.kohya(modules, 32), d.alphas(modules, 16)


def sdxl_lora() -> tuple[d.Tensors, dict[str, float]]:
    """722 modules of SDXL's UNet: 2,166 tensors."""
    modules: d.Modules = []
    depths = [("down_blocks_1", 2, 2, 640), ("down_blocks_2", 2, 10, 1280), ("mid_block", 1, 10, 1280), ("up_blocks_0", 3, 10, 1280)]
    for block, places, depth, width in [*depths, ("up_blocks_1", 3, 2, 640)]:
        for place in range(places):
            modules += [(f"lora_unet_{block}_attentions_{place}_proj_{side}", width, width) for side in ("in", "out")]
            for layer in range(depth):
                modules += transformer_block(f"lora_unet_{block}_attentions_{place}_transformer_blocks_{layer}", width, 2048)
    return d.kohya(modules, 32), d.alphas(modules, 16)


def checkpoint(family: d.Tensors, tensors: int) -> tuple[d.Tensors, dict[str, float]]:
    """A checkpoint with as many names as the published file has."""
    more = {f"model.diffusion_model.input_blocks.{n % 12}.{n}.in_layers.0.weight": (320,) for n in range(tensors - len(family))}
    return {**family, **more}, {}


FILES: dict[str, Callable[[], tuple[d.Tensors, dict[str, float]]]] = {
    "SD 1.x LoRA": sd1_lora,
    "SDXL LoRA": sdxl_lora,
    "SD 1.x checkpoint": lambda: checkpoint(d.sd1(), 1131),
    "SDXL checkpoint": lambda: checkpoint(d.sdxl(), 2515),
    "embedding": lambda: ({"emb_params": (8, 768)}, {}),
}


def measure_single(folder: Path) -> None:
    """CPU time of one file of each kind, once Python is up."""
    for kind, make in FILES.items():
        tensors, scalars = make()
        path = write_safetensors(folder / "x.safetensors", tensors, scalars=scalars)
        spent: list[float] = []
        identity = identify(path)
        for _ in range(15):
            start = time.process_time()
            identify(path)
            spent.append(time.process_time() - start)
        best, median = min(spent) * 1e3, sorted(spent)[7] * 1e3
        print(f"{kind:<18} {len(tensors) + len(scalars):>5} tensors  {best:6.1f} ms best  {median:6.1f} ms median  {identity.kind}")
        path.unlink()


def cpu_s() -> float:
    """CPU time of this process and of those it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def measure_folder(folder: Path, count: int) -> None:
    """CPU time of a folder of LoRAs: first SD 1.x, then SDXL, three to one."""
    small, large = sd1_lora(), sdxl_lora()
    for number in range(count):
        tensors, scalars = large if number % 4 == 3 else small
        path = write_safetensors(folder / f"loras/{number:05}.safetensors", tensors, scalars=scalars)
        os.utime(path, (time.time() - 100, time.time() - 100))
    for processes, what in ((1, "cold"), (spread.MOST_PROCESSES, "cold"), (spread.MOST_PROCESSES, "warm")):
        spread.MOST_PROCESSES = processes
        if what == "cold":
            shutil.rmtree(folder / "cache", ignore_errors=True)
        start, wall = cpu_s(), time.monotonic()
        found = sum(1 for item in Index(folder / "cache").list_catalog(Catalog([folder]), ["lora"]) if item.identity)
        cost = f"{cpu_s() - start:.2f} s of CPU, {time.monotonic() - wall:.2f} s"
        print(f"{found} files {what}, at most {processes} processes on {len(os.sched_getaffinity(0))} cores: {cost}")
    command = [sys.executable, "-m", "sdbatch", "models", "lora", f"paths.models={folder}", "json=true"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "xdg")}
    for what in ("cold", "warm"):
        start = time.monotonic()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        print(f"sdbatch models, {what}: {time.monotonic() - start:.2f} s with Python's start")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1000)
    count: int = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        measure_single(Path(folder))
        measure_folder(Path(folder), count)


if __name__ == "__main__":
    main()
