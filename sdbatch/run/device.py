"""Which devices this machine has, found without importing torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from sdbatch.errors import ConfigError, DeviceError

_CUDA_NAME = re.compile(r"\d+|GPU-[\w-]+|MIG-[\w/-]+")
"""How CUDA_VISIBLE_DEVICES names a device: by its number, its UUID, or that of a part of it."""
_SMI_S = 30.0


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
    kind, _, device = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and _CUDA_NAME.fullmatch(device)):
        raise ConfigError(f"memory.device={name}: give auto, cpu, cuda, or a list such as cuda:0,cuda:1.")
    if device and device not in present:
        raise ConfigError(f"memory.device={name}: this machine has {', '.join(f'cuda:{other}' for other in present) or 'no CUDA device'}.")


def cuda_devices() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs, or parts of them (MIG), that this process may use; empty without a driver.

    Raises:
        DeviceError: the driver does not answer.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        # CUDA reads up to the first name that is none: -1, or Slurm's NoDevFiles.
        return list(takewhile(_CUDA_NAME.fullmatch, (name.strip() for name in visible.split(","))))
    if shutil.which("nvidia-smi"):
        return _list_devices()
    # A container may be given any of the machine's; CUDA counts those that are there.
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _list_devices() -> list[str]:
    """As nvidia-smi numbers them; of a GPU that is divided, its parts by UUID, as a process sees but one of them otherwise."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SMI_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"nvidia-smi does not answer in {_SMI_S:.0f} s: the driver hangs. Use memory.device=cpu.") from error
    cards: dict[str, list[str]] = {}
    for line in found.stdout.splitlines() if found.returncode == 0 else []:
        if card := re.match(r"GPU (\d+):", line):
            cards[card[1]] = []
        elif part := re.match(r"\s+MIG .*\(UUID:\s*(MIG-[^)\s]+)\)", line):
            cards[list(cards)[-1]].append(part[1])
    return [name for index, parts in cards.items() for name in parts or [index]]


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
        if "CUDA_VISIBLE_DEVICES" not in found:
            found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's, where the numbers are from; CUDA's own is the fastest first
        found["CUDA_VISIBLE_DEVICES"] = place.device.removeprefix("cuda:")
    return found
