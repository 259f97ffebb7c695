"""GPUs and their driver, asked of nvidia-smi: torch is not imported, its build is read from its files."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sdbatch.doctor.finding import Finding, Site, fault, ok, warning
from sdbatch.run.device import cuda_devices

SMI_S = 20
"""A driver that does not answer for this long hangs."""
FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used", "compute_mode", "ecc.errors.uncorrected.volatile.total")
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""CUDA's major version -> the oldest Linux driver that runs it."""
BUSY = 0.5
"""Share of a GPU's memory that is in use before we come."""


def check_devices(site: Site) -> Iterator[Finding]:
    """What will make the images."""
    cuda = torch_cuda()
    wanted = str(site.get("memory", "device") or "auto")
    cards = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if not shutil.which("nvidia-smi"):
        if cards:
            yield fault("device.driver", f"{', '.join(cards)} but no nvidia-smi", "Install the driver's tools on this machine.")
        elif wanted.startswith("cuda"):
            yield fault("device.gpu", f"memory.device={wanted}, and no CUDA device is here", "Use memory.device=cpu, or another machine.")
        else:
            yield ok("device.gpu", "no GPU; images are made on the CPU")
        return
    found, error = _ask()
    if error is not None:
        todo = "Reload or reinstall the driver (after an update, reboot), then run nvidia-smi."
        yield fault("device.driver", f"nvidia-smi: {error}", todo) if cards or not found else warning("device.driver", error, todo)
        return
    visible = cuda_devices()
    yield ok("device.gpu", f"{len(visible)} of {len(found)} GPUs may be used: {', '.join(dict.fromkeys(row[1] for row in found))}")
    for row in found:
        yield from _check_card(row)
    if visible:
        yield _check_build(cuda, found[0][2])


def _ask() -> tuple[list[list[str]], str | None]:
    """Rows of `FIELDS`, or why there are none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=False)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {SMI_S} s; the driver hangs"
    except OSError as error:
        return [], str(error)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        return [], said.splitlines()[0] if said else f"exit code {done.returncode}"
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(FIELDS)], None


def _check_card(row: list[str]) -> Iterator[Finding]:
    index, name, _, total, used, mode, errors = row
    if total.isdigit() and used.isdigit() and int(used) > BUSY * int(total):
        said = f"GPU {index} ({name}): {int(used) / 1024:.0f} of {int(total) / 1024:.0f} GB are in use"
        yield warning("device.memory", said, "Another program has it; choose others with memory.device=cuda:1,... or wait.")
    if mode == "Prohibited":
        yield fault("device.mode", f"GPU {index}: its compute mode is Prohibited", f"nvidia-smi -i {index} -c DEFAULT (as root).")
    if errors.isdigit() and int(errors):
        yield warning("device.memory", f"GPU {index}: {errors} uncorrected memory errors", "Have it reset or drained; images may be wrong.")


def _check_build(cuda: str | None, driver: str) -> Finding:
    if cuda is None:
        todo = "Install torch's CUDA build (pytorch.org says how), or set memory.device=cpu."
        return fault("device.torch", f"torch {_torch_version()} is built without CUDA, and there is a GPU", todo)
    least = LEAST_DRIVER.get(int(cuda.partition(".")[0]))
    numbers = tuple(int(part) for part in re.findall(r"\d+", driver)[:2])
    if least is not None and numbers < least:
        todo = f"Update the driver to {least[0]}.{least[1]} or later, or install a torch built for an older CUDA."
        return fault("device.torch", f"torch is built for CUDA {cuda}, driver {driver} is too old for it", todo)
    return ok("device.torch", f"torch {_torch_version()} for CUDA {cuda}, driver {driver}")


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, from its version file; None for a CPU build or no torch."""
    try:
        file = Path(str(importlib.metadata.distribution("torch").locate_file("torch/version.py")))
        found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE)
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    return found[1] if found else None


def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
