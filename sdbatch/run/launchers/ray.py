"""Ray Core: warm workers on a cluster that runs, kept alive by one small detached actor, so that nobody needs to wait.

Not Ray Data: it would keep the work's state in Ray. Here it is in the sweep's folder, and the death of a driver, a node or
the head loses no more than the blocks in the making.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sdbatch.config.launcher import RayLauncher
from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import Share, Submission, require, worker_command

if TYPE_CHECKING:
    from collections.abc import Generator

NAMESPACE = "sdbatch"
RESTART_S = 10.0
"""Before a worker that was killed starts again: Ray itself would retry at once and for ever."""


class Killed(Exception):
    """A worker was killed from outside; Ray starts it again. Cells that kill are found by the worker's own supervisor."""


class Fleet:
    """The actor that owns the workers of a sweep. It outlives the process that submitted it, and ends with its work."""

    def __init__(self, words: Sequence[Sequence[str]], options: Mapping[str, Any]) -> None:
        import ray

        worker: Any = ray.remote(run_worker)
        self._tasks: list[Any] = [worker.options(**options).remote(list(command)) for command in words]
        threading.Thread(target=self._wait, name="sdbatch-fleet", daemon=True).start()

    def count(self) -> dict[str, int]:
        """How many workers have ended, and how many have not."""
        import ray

        ended, open_tasks = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        return {"ended": len(ended), "open": len(open_tasks)}

    def _wait(self) -> None:
        import ray

        for task in self._tasks:
            with suppress(Exception):  # it is in Ray's log and in the worker's own
                ray.get(task)
        ray.kill(ray.get_runtime_context().current_actor)


def run_worker(words: Sequence[str]) -> int:
    """Run the worker's command beside this process, whose death it notices; returns its exit code."""
    code = subprocess.call([sys.executable, *words])
    if code < 0:
        time.sleep(RESTART_S)
        raise Killed(f"the worker was ended by signal {-code}")
    if 0 < code < 128:
        raise RuntimeError(f"the worker ended with exit code {code}; the lines above say why")
    return code


def check() -> None:
    """Before anything is written. Raises ConfigError when nothing could be submitted from here."""
    require("ray", "ray")


def submit(folder: SweepFolder, launcher: RayLauncher) -> Submission:
    """Start the workers. Raises ConfigError without ray, or when the cluster does not answer."""
    share = Share(launcher.gpus_per_worker, launcher.cpus_per_worker)
    places = [[f"index={index}", f"workers={launcher.workers}"] for index in range(launcher.workers)]
    words = [worker_command((), folder.path, share, place) for place in places]
    name = f"{folder.path.absolute()} {time.time_ns()}"
    with connected(launcher.address, launcher.runtime_env) as ray:
        fleet = ray.remote(Fleet).options(
            name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_restarts=-1, max_task_retries=-1
        )
        actor = fleet.remote(words, task_options(launcher))
        ray.get(actor.count.remote(), timeout=60)
    return Submission("ray", name, launcher.workers, launcher.address)


def task_options(launcher: RayLauncher) -> dict[str, Any]:
    """What Ray must know of a worker: what it takes, and that a lost one starts again, without end."""
    memory = {"memory": launcher.mem_gb * 2**30} if launcher.mem_gb else {}
    return {
        "num_cpus": launcher.cpus_per_worker,
        "num_gpus": launcher.gpus_per_worker,
        "resources": dict(launcher.resources),
        **memory,
        "max_retries": -1,
        "retry_exceptions": [Killed],
    }


@contextmanager
def connected(address: str, runtime_env: Mapping[str, Any] | None = None) -> Generator[Any]:
    """A connection to the cluster. Raises ConfigError when there is none."""
    check()
    import ray

    # Ray would pack the working directory and the driver's log into its own; neither is needed.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        ray.init(address, namespace=NAMESPACE, runtime_env=dict(runtime_env or {}), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"hydra.launcher.address={address}: no Ray cluster answers there ({reason}). Start one with ray start.") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def count_workers(submission: Submission) -> dict[str, int] | None:
    """What the fleet says of its workers; None when it has ended."""
    with connected(submission.address or "auto") as ray:
        try:
            actor = ray.get_actor(submission.job, namespace=NAMESPACE)
        except ValueError:
            return None
        return ray.get(actor.count.remote(), timeout=20)


def stop(submission: Submission) -> None:
    """End the workers; they commit what they have."""
    with connected(submission.address or "auto") as ray, suppress(ValueError):
        ray.kill(ray.get_actor(submission.job, namespace=NAMESPACE))
