"""Memory, processors, limits and scratch folders of this machine."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sdbatch.doctor.finding import Finding, Site, fault, ok, warning
from sdbatch.weights.cache import cache_folder

LEAST_MEMORY_GB = 4.0
"""Below this a worker with an SD 1.x pipeline is killed by the system."""
LEAST_FILES = 1024
TEMPORARY_GB = 0.5
"""What pyarrow, torch and MLflow may want in the temporary folder."""
SHARED_GB = 0.07
"""A container's default /dev/shm of 64 MB, which torch's and NCCL's shared memory outgrow."""

_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of memory in control groups of version 2 and 1."""


def check_machine(site: Site) -> Iterator[Finding]:
    """What the machine gives a worker."""
    del site
    free_gb = memory_gb()
    said = f"{free_gb:.1f} GB of memory free, {len(os.sched_getaffinity(0))} processors"
    if free_gb < LEAST_MEMORY_GB:
        yield warning("machine.memory", said, f"Workers need {LEAST_MEMORY_GB:.0f} GB and more each; ask the scheduler for more memory.")
    else:
        yield ok("machine.memory", said)
    yield _check_files()
    yield from _check_scratch()
    yield from _check_environment()


def memory_gb() -> float:
    """Memory that can still be had, in GB: the machine's, or what is left of the control group's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for limit, used in _GROUPS:
        try:
            most = Path(limit).read_text(encoding="ascii").strip()
            left = int(most) - int(Path(used).read_text(encoding="ascii")) if most.isdigit() else available
        except OSError:
            continue
        available = min(available, max(left, 0))
    return available / 1e9


def _check_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < LEAST_FILES:
        most = "" if hard == resource.RLIM_INFINITY else f" (up to {hard} without root)"
        return warning("machine.files", f"a process may open {soft} files", f"ulimit -n {LEAST_FILES * 4}{most}.")
    return ok("machine.files", f"a process may open {soft} files")


def _check_scratch() -> Iterator[Finding]:
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield fault("machine.temporary", "no temporary folder can be written", "Set TMPDIR to a folder that can be written.")
    else:
        if (asked := os.environ.get("TMPDIR")) and Path(asked) != temporary:
            yield warning("machine.temporary", f"TMPDIR={asked} cannot be written, {temporary} is used", "Set TMPDIR to another folder.")
        elif (free := room_gb(temporary)) < TEMPORARY_GB:
            yield warning("machine.temporary", f"{temporary}: {free:.2f} GB free", "Free some space there, or set TMPDIR.")
    cache = cache_folder()
    there = next(path for path in (cache, *cache.absolute().parents) if path.is_dir())
    if not os.access(there, os.W_OK | os.X_OK) or room_gb(there) == 0.0:
        said = f"{cache} cannot be written or is full: every run hashes its weight files again"
        yield warning("machine.cache", said, "Set XDG_CACHE_HOME to a folder that can be written.")
    shared = Path("/dev/shm")
    if shared.is_dir() and 0 < (size := os.statvfs(shared).f_blocks * os.statvfs(shared).f_frsize / 1e9) <= SHARED_GB:
        yield warning("machine.shared", f"/dev/shm has {size * 1000:.0f} MB", "Start the container with --shm-size=2g or --ipc=host.")


def room_gb(folder: Path) -> float:
    """Free space where a folder lies, in GB."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize / 1e9


_DANGEROUS = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "other programs' torch.load then runs code of checkpoints (sdbatch always asks for weights only)",
    "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE": "it reopens what Hydra refuses to call (sdbatch never instantiates a configuration)",
}


def _check_environment() -> Iterator[Finding]:
    for name, why in _DANGEROUS.items():
        if os.environ.get(name):
            yield warning("machine.environment", f"{name} is set: {why}", f"unset {name}")
