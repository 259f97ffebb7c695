"""Which devices this machine has, found without importing torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sdbatch.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """Which worker of how many, on which device."""

    index: int = 0
    workers: int = 1
    device: str = "cpu"
    threads: int | None = None

    @property
    def name(self) -> str:
        """As rows and claims call it."""
        return f"worker-{self.index}"


def find_places(device: str, threads: int | None, workers: int | None = None) -> list[Place]:
    """One worker per device of `memory.device`, or so many in turn. Raises ConfigError for a device that is not there."""
    names = _names(device)
    count = workers or len(names)
    share = threads or max(1, cpus() // count)
    return [Place(index, count, names[index % len(names)], share) for index in range(count)]


def cpus() -> int:
    """CPUs that this process may use: what a scheduler gave it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(device: str) -> list[str]:
    present = cuda_devices()
    match device:
        case "auto":
            return [f"cuda:{index}" for index in present] or ["cpu"]
        case "cpu":
            return ["cpu"]
        case "cuda":
            if not present:
                raise ConfigError("memory.device=cuda: this machine shows no CUDA device. Use memory.device=cpu, or check nvidia-smi.")
            return [f"cuda:{index}" for index in present]
        case _:
            names = [name.strip() for name in device.split(",")]
            for name in names:
                _check(name, present)
            return names


def _check(name: str, present: list[str]) -> None:
    if name == "cpu":
        return
    if not (match := re.fullmatch(r"cuda:(\d+)", name)):
        raise ConfigError(f"memory.device={name}: give auto, cpu, cuda, or a list such as cuda:0,cuda:1.")
    if match[1] not in present:
        raise ConfigError(f"memory.device={name}: this machine has {', '.join(f'cuda:{index}' for index in present) or 'no CUDA device'}.")


def cuda_devices() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs this process may use; empty without a driver."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi"):
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
        )
        return found.stdout.split() if found.returncode == 0 else []
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def environment(place: Place) -> dict[str, str]:
    """The environment of a worker: its one device, its threads, no network and no remote code."""
    threads = str(place.threads or 1)
    found = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # Threads that wait for the next operation sleep instead of spinning: spinning doubles the CPU time of small models.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    found.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    if place.device.startswith("cuda:"):
        found["CUDA_VISIBLE_DEVICES"] = place.device.removeprefix("cuda:")
    return found
