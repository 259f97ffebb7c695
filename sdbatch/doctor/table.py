"""The table of checks, and running them all at once, each with a limit to its patience."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sdbatch.doctor.device import check_devices
from sdbatch.doctor.finding import Finding, Site, fault
from sdbatch.doctor.folder import check_folder
from sdbatch.doctor.library import check_libraries
from sdbatch.doctor.machine import check_machine
from sdbatch.doctor.model import check_models
from sdbatch.doctor.reach import check_mlflow, check_ray, check_slurm

Check = Callable[[Site], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "device": check_devices,
    "machine": check_machine,
    "folder": check_folder,
    "models": check_models,
    "library": check_libraries,
    "engine.slurm": check_slurm,
    "engine.ray": check_ray,
    "tracking": check_mlflow,
}
"""What is examined, in the order it is told. One line per family of checks."""

PATIENCE_S = 25.0
"""A file server or driver that does not answer for this long hangs."""


@dataclass
class _Result:
    thread: threading.Thread
    findings: list[Finding] = field(default_factory=list[Finding])
    error: Exception | None = None


def examine(site: Site, checks: Mapping[str, Check] = CHECKS, patience_s: float = PATIENCE_S) -> list[Finding]:
    """All findings. A check that hangs or breaks is a finding too; the others are told all the same."""
    results = {name: _start(site, check) for name, check in checks.items()}
    found: list[Finding] = []
    for name, result in results.items():
        result.thread.join(patience_s)
        found += list(result.findings)
        if result.thread.is_alive():
            todo = "Something under it hangs (a file server, a driver); look at `dmesg` and mounts."
            found.append(fault(name, f"no answer in {patience_s:.0f} s", todo))
        elif result.error is not None:
            found.append(fault(name, f"the check broke: {type(result.error).__name__}: {result.error}", "Please report this."))
    return found


def _start(site: Site, check: Check) -> _Result:
    """Run a check on a thread that nobody has to wait for: a call into a dead file server never returns."""

    def work() -> None:
        try:
            for finding in check(site):
                result.findings.append(finding)
        except Exception as error:
            result.error = error

    result = _Result(threading.Thread(target=work, daemon=True))
    result.thread.start()
    return result
