"""Peak memory of a worker and its driver for 200, 2,000 and 5,000 images: it must not grow with their number.

python -m tests.benchmarks.memory
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (200, 2_000, 5_000)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for count in COUNTS:
            peaks = watch(count, Path(scratch) / str(count))
            print(f"{count:>6} images: " + ", ".join(f"{name} {peak_mb} MB" for name, peak_mb in peaks.items()), flush=True)


def watch(count: int, out: Path) -> dict[str, int]:
    """Make so many small images; the peak memory in MB of the driver and of the largest process under it."""
    keys = ["steps=1", "guidance_scale=1", "width=64", "height=64", f"seed=range(0,{count})", "tracking=none", "output.grid=false"]
    process = subprocess.Popen([sys.executable, "-m", "sdbatch", *keys, "-m", f"out={out}"], stderr=subprocess.DEVNULL)
    peaks = {"driver": 0, "worker": 0}
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        peaks["driver"] = max(peaks["driver"], peak_mb(process.pid))
        for child in children.read_text().split() if children.exists() else []:
            peaks["worker"] = max(peaks["worker"], peak_mb(int(child)))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"the sweep ended with exit code {process.returncode}")
    return peaks


def peak_mb(pid: int) -> int:
    """The most memory a process has held so far; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
