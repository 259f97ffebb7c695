"""When a Slurm job goes back into the queue: what `scontrol show job` said of real ones, by cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdbatch.run.requeue import Cause, find_cause, job_id

RUNNING = "JobId=7 ArrayJobId=5 ArrayTaskId=1 JobState=RUNNING Reason=None Restarts=0 StartTime=2026-11-21T09:38:25"


@pytest.mark.parametrize(
    ("number", "shown", "expected"),
    [
        (signal.SIGTERM, f"{RUNNING} PreemptTime=2026-11-21T09:38:38", Cause.preempted),
        (signal.SIGUSR2, f"{RUNNING} PreemptTime=2026-11-21T09:38:38", Cause.preempted),
        (signal.SIGUSR2, f"{RUNNING} PreemptTime=None", Cause.time_limit),
        (signal.SIGTERM, "JobId=7 JobState=COMPLETING Reason=TimeLimit PreemptTime=None StartTime=2026-11-21T09:38:25", Cause.time_limit),
        # scancel, also after a warning that came before it.
        (signal.SIGTERM, "JobId=7 JobState=COMPLETING Reason=None PreemptTime=None StartTime=2026-11-21T09:38:25", Cause.cancelled),
        (signal.SIGUSR2, "JobId=7 JobState=COMPLETING Reason=None PreemptTime=None StartTime=2026-11-21T09:38:25", Cause.cancelled),
        # It was preempted in an earlier life; now somebody sends it a signal by hand.
        (signal.SIGTERM, f"{RUNNING} PreemptTime=2026-11-21T08:00:00", Cause.cancelled),
        (signal.SIGTERM, f"{RUNNING} PreemptTime=None", Cause.cancelled),
        # Slurm does not answer.
        (signal.SIGTERM, "", Cause.cancelled),
    ],
)
def test_what_slurm_says_tells_why_a_job_was_stopped(number: int, shown: str, expected: Cause) -> None:
    assert find_cause(number, shown) is expected


def test_an_array_s_task_is_called_by_its_own_name() -> None:
    assert job_id({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1"}) == "5_1"
    assert job_id({"SLURM_JOB_ID": "7"}) == "7"
    assert job_id({}) is None


def test_a_signal_that_comes_before_the_handlers_is_not_lost(tmp_path: Path) -> None:
    """What the task does before it becomes the worker: block, exec. The mark is the new program's, set by its handler."""
    mark = tmp_path / "mark"
    program = f"""
import os, signal, time
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
signal.signal(signal.SIGTERM, lambda *_: open({str(mark)!r}, "w").close())
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
"""
    code = f"from sdbatch.run.launchers.slurm import Task; Task(('-c', {program!r}))()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert mark.exists()
