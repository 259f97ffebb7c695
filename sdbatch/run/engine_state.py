"""What the engine says of a sweep's workers, beside what the folder says. Optional: nothing depends on the answer."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import Submission, read_submissions

SLURM_S = 5.0
RAY_S = 30.0
"""Limits of one question; to connect to Ray takes seconds."""
ASK_S = 30.0
"""Between two questions of somebody who watches."""
_ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


@dataclass(frozen=True)
class EngineState:
    """The workers that an engine has of one submission."""

    submission: Submission
    counts: dict[str, int]
    """State in the engine's own words -> workers; those that have ended are left out."""

    @property
    def alive(self) -> int:
        """Workers that run or will."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        return f"{self.submission}: {', '.join(f'{number} {state}' for state, number in self.counts.items()) or 'none left'}"


_known: dict[Path, tuple[float, list[EngineState]]] = {}


def engine_states(folder: SweepFolder, max_age_s: float = 0.0) -> list[EngineState]:
    """The state of every submission of this sweep whose engine answers; empty for a local sweep.

    With `max_age_s` an answer that young is given again: engines are not to be asked every second.
    """
    asked_s, known = _known.get(folder.path, (-math.inf, []))
    if time.monotonic() - asked_s <= max_age_s:
        return known
    found: list[EngineState] = []
    for submission in read_submissions(folder):
        counts = _slurm(submission) if submission.engine == "slurm" else _ray(submission)
        if counts is not None:
            found.append(EngineState(submission, counts))
    _known[folder.path] = (time.monotonic(), found)
    return found


def _slurm(submission: Submission) -> dict[str, int] | None:
    """By squeue, a task a line; works without accounting."""
    if shutil.which("squeue") is None:
        return None
    asked = _run(["squeue", "--noheader", "--array", "--format=%T", f"--jobs={submission.job}"], SLURM_S)
    if asked is None:
        return None
    if asked.returncode:
        # A job that Slurm has forgotten is told as an error.
        return {} if "Invalid job id" in asked.stderr else None
    return dict(Counter(state.lower() for state in asked.stdout.split() if state not in _ENDED))


def _ray(submission: Submission) -> dict[str, int] | None:
    """By a process of its own, which can be given up: a connection to a dead head waits for long."""
    code = "import json, sys; from sdbatch.run.launchers.command import Submission; from sdbatch.run.launchers.ray import count_workers\n"
    code += "found = count_workers(Submission('ray', sys.argv[1], 0, sys.argv[2])); print('open', (found or {'open': 0})['open'])"
    asked = _run([sys.executable, "-c", code, submission.job, submission.address or "auto"], RAY_S)
    if asked is None or asked.returncode:
        return None
    number = int(asked.stdout.split()[-1])
    return {"running or waiting": number} if number else {}


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
