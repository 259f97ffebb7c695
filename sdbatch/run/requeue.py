"""Leaving a Slurm job with work left: back into the queue when it was preempted or its time was up, never when cancelled.

Nor when its time was up again before anything was made: that would go on for ever. Slurm does not requeue a job that
leaves politely within its grace time: to it, the job is completed. So the task asks.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import StrEnum

from sdbatch.results.folder import SweepFolder
from sdbatch.run.stall import LIVES, count_fruitless, describe
from sdbatch.run.supervisor import Tally

ASK_S = 10.0
"""Limit of one question to Slurm."""
END_S = 60.0
"""A requeued task is ended by Slurm well within this."""
KILL_S = 600.0
"""Without `scontrol` (in a container) a task stays until it is killed, which Slurm takes for preempted; at most this long."""


def job_id(environment: Mapping[str, str]) -> str | None:
    """This task's own job; None outside Slurm. Of an array the task's, since the array's id alone would requeue every task."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


class Cause(StrEnum):
    """Why a job was told to stop."""

    preempted = "preempted"
    time_limit = "at its time limit"
    cancelled = "cancelled"


def find_cause(signal_number: int, shown: str) -> Cause:
    """Why a job was told to stop by this signal; `shown` is its line of `scontrol show job -o`."""
    facts = dict(re.findall(r"(\w+)=(\S*)", shown))
    if facts.get("Reason") == "TimeLimit":
        return Cause.time_limit
    if facts.get("JobState") != "RUNNING":
        return Cause.cancelled  # a requeue would succeed, and raise it from the dead
    preempted, started = facts.get("PreemptTime", "None"), facts.get("StartTime", "")
    # A job that was preempted once keeps the time of it; both are ISO texts, which sort as times do.
    if preempted not in ("None", "Unknown") and preempted >= started:
        return Cause.preempted
    # Sent before the time limit, and at preemption where the cluster is set up so.
    return Cause.time_limit if signal_number == signal.SIGUSR2 else Cause.cancelled


def leave(job: str, folder: SweepFolder, tally: Tally) -> None:
    """Go back into the queue where that is right, and wait to be ended."""
    if shutil.which("scontrol") is None:
        sys.stderr.write("sdbatch: no scontrol here to ask for a requeue with; staying until Slurm ends this job.\n")
        time.sleep(KILL_S)
        return
    shown = _scontrol("show", "job", "-o", job)
    cause = find_cause(tally.signal_number, shown.stdout)
    if cause is Cause.cancelled:
        sys.stderr.write(f"sdbatch: slurm job {job} was cancelled; it does not go back into the queue.\n")
        return
    if cause is Cause.time_limit:
        is_fruitful = tally.made + tally.failed > 0 or not tally.had_work
        if count_fruitless(folder.claims, job, is_fruitful=is_fruitful) >= LIVES:
            sys.stderr.write(f"sdbatch: {describe(job, folder.path)}\n")
            return
    asked = _scontrol("requeue", job)
    if asked.returncode:
        sys.stderr.write(f"sdbatch: slurm job {job} cannot be requeued: {asked.stderr.strip()}\n")
        return
    sys.stderr.write(f"sdbatch: slurm job {job}, {cause}, goes back into the queue with work left.\n")
    sys.stderr.flush()
    time.sleep(END_S)


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer in {ASK_S:.0f} s")
