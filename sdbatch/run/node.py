"""One task of an engine: a supervised worker on each device it was given, until no work is left.

Knows no engine. Slurm, Ray and Kubernetes start the same command; what they set in the environment only says which task
of how many this is, so that tasks begin at different ends of the plan.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed
from sdbatch.run.device import Place, find_places
from sdbatch.run.display import TaskWatcher
from sdbatch.run.outcome import count
from sdbatch.run.projecting import Projecting, node_uri
from sdbatch.run.settings import Settings
from sdbatch.run.supervisor import Supervisor, Tally


@dataclass(frozen=True)
class Task:
    """Which task of how many."""

    index: int = 0
    tasks: int = 1


def find_task(environment: Mapping[str, str]) -> Task:
    """The task that Slurm, Kubernetes or SkyPilot says this is; the only one where none of them does."""

    def number(name: str, default: int) -> int:
        return int(environment.get(name) or default)

    if "SLURM_JOB_ID" in environment:
        array = number("SLURM_ARRAY_TASK_ID", 0) - number("SLURM_ARRAY_TASK_MIN", 0)
        tasks = number("SLURM_NTASKS", 1)
        return Task(array * tasks + number("SLURM_PROCID", 0), number("SLURM_ARRAY_TASK_COUNT", 1) * tasks)
    if "JOB_COMPLETION_INDEX" in environment:
        return Task(number("JOB_COMPLETION_INDEX", 0))
    return Task(number("SKYPILOT_NODE_RANK", 0), number("SKYPILOT_NUM_NODES", 1))


def places_of(task: Task, devices: str, threads: int | None) -> list[Place]:
    """This task's devices among those of all tasks, which are taken to have as many each."""
    places = find_places(devices, threads)
    offset, workers = task.index * len(places), task.tasks * len(places)
    return [replace(place, index=offset + place.index, workers=workers) for place in places]


def work(folder: SweepFolder, task: Task, devices: str, threads: int | None) -> Tally:
    """Make what is left of a planned sweep, beside whoever else does; `devices` empty: as planned. Raises FolderError, ConfigError."""
    settings = Settings.from_dict(folder.read_about()["settings"])
    if not folder.claims.is_dir():
        # Nobody is at work: either the sweep has ended since this task was submitted, or this task is the first.
        plan = PlanFile(folder.plan)
        made, faulty = count(plan, committed(folder))
        if made + faulty == plan.cells:
            return Tally(0)
        folder.claims.mkdir(exist_ok=True)
    places = places_of(task, devices or _devices(settings.device), settings.threads or threads)
    watcher, uri = TaskWatcher(), node_uri(settings) or ""
    if not uri.startswith("http"):
        # An SQLite file is for the processes of one machine: the task that ends the sweep writes it, once.
        return Supervisor(folder, places, 0, watcher, sys.stderr).run()
    projecting = Projecting(watcher, folder, settings, uri)
    tally = Supervisor(folder, places, 0, projecting, sys.stderr).run()
    if not tally.signal_number:
        projecting.close()
    return tally


def _devices(asked: str) -> str:
    """`memory.device` for another machine than it was written for: a list of devices means nothing there."""
    return asked if asked in ("auto", "cpu", "cuda") else "auto"
