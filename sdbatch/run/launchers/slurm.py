"""Slurm through submitit: one array of warm workers, submitted and left alone.

submitit writes and submits the batch file; in the task it hands over to `sdbatch worker` for good (exec), so no result is
pickled and nothing waits for one. It works without `sacct`: the sweep's folder says what is done.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from sdbatch.config.launcher import SlurmLauncher
from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import Share, Submission, require, worker_command

STOPS = (signal.SIGTERM, signal.SIGUSR2)
IGNORE = "trap '' TERM USR2"
"""A signal that comes while Python starts would end the task; a lost one costs nothing, since Slurm kills and requeues then."""
COUNT_S = 5.0
STOP_S = 30.0
"""Limits of one question to Slurm."""
_ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")

REFUSED = ("hydra/launcher=slurm", "Look at hydra.launcher.*, what is in hydra.launcher.options and what `sinfo` says.")
REFUSALS = (
    ("partition", "hydra.launcher.partition", "`sinfo -o %P` lists those that are there."),
    ("account", "hydra.launcher.account", "`sacctmgr show associations user=$USER` lists yours."),
    ("qos", "hydra.launcher.qos", "`sacctmgr show qos` lists those that are there."),
    ("contact", "hydra/launcher=slurm", "Slurm does not answer: try `sinfo`. The sweep is planned; the same command submits it."),
    ("memory", "hydra.launcher.mem_gb", "`sinfo -o '%P %c %m %G'` says what nodes have: processors, memory in MB, GPUs."),
    ("feature", "hydra.launcher.constraint", "`sinfo -o '%P %f'` lists the features of nodes."),
    ("gres", "hydra.launcher.gpus_per_worker", "`sinfo -o '%P %G'` says what nodes have; 0 is the CPU."),
    ("node configuration", "hydra.launcher", "`sinfo -o '%P %c %m %G'` says what nodes have: processors, memory in MB, GPUs."),
)
"""A word of sbatch's error, what it is about, what to do."""


@dataclass(frozen=True)
class Task:
    """What submitit pickles: become the worker."""

    words: tuple[str, ...]
    """Of the command, after the Python."""

    def __call__(self) -> None:
        """Never returns. A signal from here on waits until the worker has its handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        os.execv(sys.executable, [sys.executable, *self.words])

    def checkpoint(self, *_: Any) -> Any:
        """submitit's own handler, in the moment before the call: the same again, all state is in the folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def check() -> None:
    """Before anything is written. Raises ConfigError when nothing could be submitted from here."""
    require("slurm", "submitit")
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise ConfigError("hydra/launcher=slurm: there is no srun and sbatch here. Run this where they are, such as a login node.")


def submit(folder: SweepFolder, launcher: SlurmLauncher, name: str) -> Submission:
    """Submit the workers. Raises ConfigError without submitit or Slurm, or when sbatch refuses."""
    words = worker_command((), folder.path, Share(launcher.gpus_per_worker, launcher.cpus_per_worker))
    executor = build_executor(folder.path / "slurm", launcher, name)
    try:
        with redirect_stderr(StringIO()), executor.batch():  # it prints what it raises
            jobs: Sequence[Any] = [executor.submit(Task(tuple(words))) for _ in range(launcher.workers)]
    except Exception as error:
        if type(error).__module__.startswith("submitit"):
            raise ConfigError(_refusal(str(error))) from None
        raise
    return Submission("slurm", str(jobs[0].job_id).partition("_")[0], launcher.workers)


def count(submission: Submission) -> dict[str, int] | None:
    """Tasks of the array by state, those that have ended left out; None when Slurm does not answer. Works without accounting."""
    command = ["squeue", "--noheader", "--array", "--format=%T %r", f"--jobs={submission.job}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=COUNT_S, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
    if asked.returncode:
        # A job that Slurm has forgotten is told as an error.
        return {} if "Invalid job id" in asked.stderr else None
    tasks = (line.partition(" ") for line in asked.stdout.splitlines())
    return dict(Counter(_state(state, reason) for state, _, reason in tasks if state not in _ENDED))


def _state(state: str, reason: str) -> str:
    """In words, with why a task waits: that tells one that will run from one that never can."""
    return f"pending ({reason.strip()})" if state == "PENDING" else state.lower()


def stop(submission: Submission) -> None:
    """Cancel the job; it does not come back. Raises ConfigError when Slurm does not take it."""
    try:
        subprocess.run(["scancel", submission.job], check=True, timeout=STOP_S, capture_output=True, text=True)
    except (subprocess.SubprocessError, OSError) as error:
        raise ConfigError(f"scancel {submission.job}: {getattr(error, 'stderr', None) or error}".strip()) from None


def build_executor(folder: Path, launcher: SlurmLauncher, name: str) -> Any:
    """submitit's executor with all options set. Raises ConfigError."""
    check()
    import submitit

    python = launcher.python or shlex.quote(sys.executable)
    executor = submitit.AutoExecutor(folder.absolute(), cluster="slurm", slurm_python=f"sh -c {shlex.quote(_started(python))} sh")
    given = {
        "mem_gb": launcher.mem_gb,
        "gpus_per_node": launcher.gpus_per_worker or None,
        "slurm_partition": launcher.partition,
        "slurm_qos": launcher.qos,
        "slurm_account": launcher.account,
        "slurm_constraint": launcher.constraint,
    }
    executor.update_parameters(
        name=f"sdbatch-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}",
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=launcher.cpus_per_worker,
        timeout_min=launcher.timeout_min,
        stderr_to_stdout=True,
        slurm_signal_delay_s=launcher.signal_delay_s,
        slurm_array_parallelism=launcher.parallel or launcher.workers,
        slurm_setup=[IGNORE, *launcher.setup],
        # Since 22.05 a step does not inherit the job's CPUs per task.
        slurm_srun_args=[f"--cpus-per-task={launcher.cpus_per_worker}", *launcher.srun],
        slurm_additional_parameters={"requeue": True, **launcher.options},
        **{key: value for key, value in given.items() if value is not None},
    )
    return executor


def _started(python: str) -> str:
    """The shell line around submitit's own command, which comes as its arguments."""
    return f'{IGNORE}; exec {python} "$@"'


def _refusal(said: str) -> str:
    """What sbatch printed, with the key that it is about."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in said.splitlines() if line.strip()]
    key, todo = next(((key, todo) for word, key, todo in REFUSALS if word in said.lower()), REFUSED)
    return f"{key}: sbatch refused the job ({'; '.join(lines) or 'it says no more'}). {todo}"
