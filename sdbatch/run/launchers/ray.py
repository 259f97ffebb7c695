"""Ray Core: warm workers on a cluster that runs, kept alive by one small detached actor, so that nobody needs to wait.

Not Ray Data: it would keep the work's state in Ray. Here it is in the sweep's folder, and the death of a driver, a node or
the head loses no more than the blocks in the making. What is asked of a cluster is asked by a process of its own, which
can be given up: Ray waits for a head that is gone for as long as one lets it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdbatch.config.launcher import RayLauncher
from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import Share, Submission, require, worker_command

NAMESPACE = "sdbatch"
RESTART_S = 10.0
"""Before a worker that was killed starts again: Ray itself would retry at once and for ever."""
ANSWER_S = 90.0
"""To connect to a cluster takes seconds, to start the actor some more."""
COUNT_S = 30.0
KNOCK_S = 5.0
"""A head that does not take a connection within this is not there."""
TRAVELLING = ("MLFLOW_", "DATABRICKS_")
"""Names of the environment that the workers get beside `runtime_env`: where rows are tracked, and by whom."""


class Killed(Exception):
    """A worker was killed from outside; Ray starts it again. Cells that kill are found by the worker's own supervisor."""


class Fleet:
    """The actor that owns the workers of a sweep. It outlives the process that submitted it, and ends with its work."""

    def __init__(self, words: Sequence[Sequence[str]], options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        import ray

        worker: Any = ray.remote(run_worker)
        self._tasks: list[Any] = [worker.options(**options).remote(list(command), dict(environment)) for command in words]
        threading.Thread(target=self._wait, name="sdbatch-fleet", daemon=True).start()

    def count(self) -> int:
        """How many workers have not ended."""
        import ray

        return len(ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)[1])

    def _wait(self) -> None:
        import ray

        for task in self._tasks:
            with suppress(Exception):  # it is in Ray's log and in the worker's own
                ray.get(task)
        ray.kill(ray.get_runtime_context().current_actor)


def run_worker(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the worker's command beside this process, whose death it notices; returns its exit code."""
    code = subprocess.call([sys.executable, *words], env={**os.environ, **environment})
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
    runtime_env = dict(launcher.runtime_env)
    # Not by Ray's own environment, which it writes into its logs.
    variables = {name: str(value) for name, value in runtime_env.pop("env_vars", {}).items()}
    options = task_options(launcher)
    fleet = {
        "words": [worker_command((), folder.path, share, place) for place in places],
        "options": options,
        "environment": {name: value for name, value in os.environ.items() if name.startswith(TRAVELLING)} | variables,
    }
    name = f"{folder.path.absolute()} {time.time_ns()}"
    address = resolve(launcher.address)
    if not _ask(_start, address, ANSWER_S, name=name, fleet=fleet, runtime_env=runtime_env):
        wanted = ", ".join(f"{key}={value:g}" for key, value in _resources(options).items() if value)
        sys.stderr.write(
            f"warning: no node of the cluster has {wanted} for a worker now; they wait for one that has (hydra.launcher.*_per_worker).\n"
        )
    return Submission("ray", name, launcher.workers, address)


def task_options(launcher: RayLauncher) -> dict[str, Any]:
    """What Ray must know of a worker: what it takes, and that a lost one starts again, without end."""
    memory = {"memory": launcher.mem_gb * 2**30} if launcher.mem_gb else {}
    return {
        "num_cpus": launcher.cpus_per_worker,
        "num_gpus": launcher.gpus_per_worker,
        "resources": dict(launcher.resources),
        **memory,
        "max_retries": -1,
    }


def count(submission: Submission) -> dict[str, int] | None:
    """Workers of a fleet that have not ended; None when the cluster does not answer."""
    try:
        number = _ask(_count, submission.address or "auto", COUNT_S, name=submission.job)
    except ConfigError:
        return None
    return {"running or waiting": number} if number else {}


def stop(submission: Submission) -> None:
    """End the workers; they commit what they have. Raises ConfigError when the cluster does not answer."""
    _ask(_stop, submission.address or "auto", ANSWER_S, name=submission.job)


def resolve(address: str) -> str:
    """The address that `auto` stands for, as Ray finds it; `auto` when there is none, or Ray has to choose."""
    if address != "auto":
        return address
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    if len(found := _raylets()) == 1:
        return found.pop()
    with suppress(OSError):
        # Kept by `ray start`, also when its cluster has ended since.
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/ray_current_cluster").read_text().strip()
    return address


def _raylets() -> set[str]:
    """The heads that this machine's nodes belong to."""
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.update(re.findall(r"--gcs-address=([^\0 ]+)", path.read_text(errors="replace")))
    return found


def knock(address: str) -> None:
    """Raises ConfigError when nothing listens where the head should be, or when that is no address."""
    if address == "auto":
        if not _raylets():
            raise ConfigError(_silence(address, "none runs on this machine"))
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"hydra.launcher.address={address}: give HOST:PORT of the head, such as 10.0.0.1:6379, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_silence(address, getattr(error, "strerror", None) or str(error))) from None


def _silence(address: str, reason: str) -> str:
    todo = "Start one (`ray start --head`), or give the HOST:PORT of its head."
    return f"hydra.launcher.address={address}: no Ray cluster answers ({reason}). {todo}"


def _ask(answer: Any, address: str, limit_s: float, **question: Any) -> Any:
    """What one of the functions below returns, run in another process. Raises ConfigError when the cluster does not answer."""
    check()
    knock(address)
    # The question by standard input: what the workers' environment holds must not show in the list of processes.
    program = "from sdbatch.run.launchers.ray import reply; reply()"
    asked = json.dumps({"answer": answer.__name__, "address": address, "question": question})
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(_silence(address, f"nothing in {limit_s:.0f} s")) from None
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = {"error": next(iter(done.stderr.strip().splitlines()[-1:]), "no answer")}
    if "error" in told:
        raise ConfigError(_silence(address, told["error"]))
    return told["answer"]


def reply() -> None:
    """In the other process: connect, do what is asked, and print what is to be told as the last line."""
    import ray

    asked = json.loads(sys.stdin.read())
    answer = {function.__name__: function for function in (_start, _count, _stop)}[asked["answer"]]
    environment = asked["question"].pop("runtime_env", None)
    try:
        ray.init(asked["address"], namespace=NAMESPACE, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        told = {"answer": answer(ray, **asked["question"])}
    except Exception as error:
        told = {"error": next(iter(str(error).strip().splitlines()), type(error).__name__)}
    sys.stdout.write(f"\n{json.dumps(told)}\n")


def _start(ray: Any, name: str, fleet: Mapping[str, Any]) -> bool:
    """Start a fleet; returns whether a node has what a worker takes."""
    options = {**fleet["options"], "retry_exceptions": [Killed]}
    actor = ray.remote(Fleet).options(name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_restarts=-1, max_task_retries=-1)
    ray.get(actor.remote(fleet["words"], options, fleet["environment"]).count.remote())
    wanted = _resources(options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(key, 0) >= value for key, value in wanted.items()) for node in nodes)


def _resources(options: Mapping[str, Any]) -> dict[str, float]:
    """What a worker takes, as Ray's nodes call it."""
    return {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0), **options["resources"]}


def _count(ray: Any, name: str) -> int:
    try:
        return ray.get(ray.get_actor(name, namespace=NAMESPACE).count.remote())
    except ValueError:  # the fleet has ended, and its workers with it
        return 0


def _stop(ray: Any, name: str) -> None:
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
