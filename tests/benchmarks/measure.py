"""Run a command and count what it and all of its children cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    cpu_s: float
    """User and system time of the process and all children it waited for."""
    wall_s: float
    peak_mb: float
    """Resident memory of the largest single process."""


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run to the end; a failure shows the output and ends the benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "benchmark.log"
    started_s = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    if status != 0:
        sys.exit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / 1024)


def table(rows: Mapping[str, Cost], base: str) -> str:
    """Costs as lines, with the ratio of CPU time to one of them."""
    lines = [f"{'':<34}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'CPU ratio':>11}"]
    for name, cost in rows.items():
        lines.append(f"{name:<34}{cost.cpu_s:9.1f}{cost.wall_s:9.1f}{cost.peak_mb:9.0f}{cost.cpu_s / rows[base].cpu_s:11.2f}")
    return "\n".join(lines)
