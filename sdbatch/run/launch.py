"""Run a job in its folder: take up what is there, and have what is missing made here or by an engine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbatch.config.launcher import LocalLauncher, RayLauncher, SlurmLauncher, TemplateLauncher, read_launcher
from sdbatch.errors import ConfigError, FolderError
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Index, committed
from sdbatch.results.stray import list_temporary, remove_abandoned
from sdbatch.results.upkeep import merge_parts
from sdbatch.run import roster
from sdbatch.run.device import find_places
from sdbatch.run.display import build_watcher
from sdbatch.run.engine_state import engine_states
from sdbatch.run.follow import follow
from sdbatch.run.launchers import ray, slurm
from sdbatch.run.launchers.command import Submission, write_submission
from sdbatch.run.launchers.template import job_file
from sdbatch.run.outcome import Handed, Outcome, Printed, count
from sdbatch.run.prepare import Job
from sdbatch.run.projecting import Projecting
from sdbatch.run.room import find_shortage
from sdbatch.run.settings import Settings
from sdbatch.run.settle import check_files, open_claims, seconds_since_begun, settle, take_up, tell_versions
from sdbatch.run.supervisor import Supervisor, Tally
from sdbatch.tracking.target import MASK

MERGED_PARTS = range(257, 10_001)
"""So many small parts are merged when a run ends: each costs every reader a millisecond. More would hold up the end for
minutes; `sdbatch compact` merges those."""

Ending = Outcome | Handed | Printed


def run_job(job: Job) -> Ending:
    """Run a prepared job. Raises FolderError before anything is made if the folder cannot be used."""
    folder = SweepFolder(job.out)
    _check(job.settings)
    folder.create()
    with folder.lock():
        state = take_up(folder)
        tell_versions(folder)
        settle(folder, job, state)
        return _launch(folder, job.settings, job.settings.tracking_uri, state)


def resume(path: Path, uri: str | None = None, launcher: Mapping[str, Any] | None = None) -> Ending:
    """Go on with the sweep in a folder; `uri` is its tracking server, where that has a password. Raises FolderError.

    `launcher`: options of another one than it was planned with, or only those that change when they name none.
    """
    folder = SweepFolder(path)
    if not folder.plan.is_file():
        raise FolderError(f"{path}: there is no sweep to go on with (no plan.parquet). Give the folder of a sweep, such as outputs/NAME.")
    with folder.lock():
        check_files(PlanFile(folder.plan))
        about = folder.read_about()
        if "settings" not in about:
            raise FolderError(f"{path}: was stopped while it was planned. Run the sweep's own command again.")
        settings = Settings.from_dict(about["settings"])
        if launcher:
            kept = {} if "name" in launcher else settings.launcher
            settings = replace(settings, launcher={**kept, **launcher})
        _check(settings)
        tell_versions(folder)
        return _launch(folder, settings, uri or settings.tracking_uri, take_up(folder))


def _check(settings: Settings) -> None:
    """Raises ConfigError when the launcher cannot be used here, before anything is written."""
    launcher = read_launcher(settings.launcher)
    if settings.device == "cpu" and not isinstance(launcher, LocalLauncher) and launcher.gpus_per_worker:
        raise ConfigError("memory.device=cpu: set hydra.launcher.gpus_per_worker=0 as well, or the workers reserve GPUs for nothing.")
    match launcher:
        case SlurmLauncher():
            slurm.check()
        case RayLauncher():
            ray.check()
        case _:
            return


def _launch(folder: SweepFolder, settings: Settings, uri: str | None, state: Index) -> Ending:
    plan = PlanFile(folder.plan)
    before, _ = count(plan, state)
    launcher = read_launcher(settings.launcher)
    if before == plan.cells:
        return Outcome(folder, settings, plan.cells, before, Tally(0), state)
    _warn_of_room(folder, settings, plan.cells, plan.cells - before)
    open_claims(folder, plan, state)
    match launcher:
        case TemplateLauncher():
            return Printed(job_file(folder, launcher, settings.name))
        case SlurmLauncher() | RayLauncher():
            launcher = replace(launcher, workers=min(launcher.workers, max(1, plan.shards)))
            if uri is not None and MASK not in uri:
                # A password reaches the workers by their environment, never by a file.
                os.environ["MLFLOW_TRACKING_URI"] = uri
            handed = _hand_over(folder, settings, launcher, plan.cells - before)
            if not launcher.wait:
                return handed
            workers = "; ".join(str(submission) for submission in handed.submissions)
            sys.stderr.write(f"{settings.name}: {_ask(plan, before)}, on {workers}\n")
            watcher = Projecting(build_watcher(settings.name), folder, settings, uri)
            tally = follow(folder, before, watcher)
        case LocalLauncher():
            watcher = Projecting(build_watcher(settings.name), folder, settings, uri)
            tally = _make_here(folder, settings, launcher, before, watcher)
    watcher.close()
    return close(folder, settings, before, tally)


def _make_here(folder: SweepFolder, settings: Settings, launcher: LocalLauncher, before: int, watcher: Projecting) -> Tally:
    """Make what is free, and then what workers leave that were busy before this run began."""
    tally = _supervise(folder, settings, launcher, before, watcher)
    began_s = tally.started_s
    while tally.error is None and not tally.signal_number and not roster.is_finished(folder):
        if roster.watch_alive(folder.claims):
            tally = follow(folder, before, watcher, by_engine=False)
            if tally.made + tally.failed >= tally.total:
                break
        else:
            tally = _supervise(folder, settings, launcher, before, watcher)
    tally.started_s = began_s
    return tally


def _supervise(folder: SweepFolder, settings: Settings, launcher: LocalLauncher, before: int, watcher: Projecting) -> Tally:
    plan = PlanFile(folder.plan)
    places = find_places(settings.device, settings.threads, launcher.workers)[: max(1, plan.shards)]
    sys.stderr.write(f"{settings.name}: {_ask(plan, before)}, on {', '.join(place.device for place in places)}\n")
    with folder.log.open("a", encoding="utf-8") as log:
        return Supervisor(folder, places, plan.cells - before, watcher, log).run()


def _hand_over(folder: SweepFolder, settings: Settings, launcher: SlurmLauncher | RayLauncher, left: int) -> Handed:
    """Submit as many workers as are not there yet."""
    there = [state for state in engine_states(folder) if state.alive and state.submission.engine == launcher.name]
    known = [state.submission for state in there]
    wanted = launcher.workers - sum(state.alive for state in there)
    if wanted <= 0:
        return Handed(folder, settings, left, known, 0)
    submission = _submit(folder, settings, replace(launcher, workers=wanted))
    write_submission(folder, submission)
    return Handed(folder, settings, left, [*known, submission], wanted)


def _submit(folder: SweepFolder, settings: Settings, launcher: SlurmLauncher | RayLauncher) -> Submission:
    if isinstance(launcher, SlurmLauncher):
        return slurm.submit(folder, launcher, settings.name)
    return ray.submit(folder, launcher)


def close(folder: SweepFolder, settings: Settings, before: int, tally: Tally) -> Outcome:
    """Put the folder of a run that ended in order, unless others are busy with it. Only while its lock is held."""
    temporary = list_temporary(folder)
    if not tally.signal_number and not roster.watch_alive(folder.claims):
        remove_abandoned(temporary, ())
        roster.remove(folder.claims)
        if len(folder.parts()) in MERGED_PARTS:
            merge_parts(folder)
    state = committed(folder)
    plan = PlanFile(folder.plan)
    made, tally.failed = count(plan, state)
    tally.made = made - before  # by whomever
    return Outcome(folder, settings, plan.cells, before, tally, state)


def close_if_last(folder: SweepFolder) -> Outcome | None:
    """What the task of an engine does at its end: None unless it ended the sweep, and nobody waits to close it."""
    if not folder.claims.is_dir() or not roster.is_finished(folder):
        return None
    try:
        with folder.lock():
            if not folder.claims.is_dir():
                return None
            settings = Settings.from_dict(folder.read_about()["settings"])
            began_s = time.monotonic() - seconds_since_begun(folder)
            return close(folder, settings, 0, Tally(PlanFile(folder.plan).cells, started_s=began_s))
    except FolderError:
        return None  # the process that submitted it holds the lock: it waits, and closes


def _warn_of_room(folder: SweepFolder, settings: Settings, cells: int, left: int) -> None:
    """Only warned of: how well the images compress is not known."""
    expected_bytes = folder.read_about().get("image_bytes", 0)
    if shortage := find_shortage(folder.path, expected_bytes * left / cells, left, settings.format):
        sys.stderr.write(f"warning: {shortage}\n")


def _ask(plan: PlanFile, before: int) -> str:
    recipes = "1 recipe" if len(plan.recipes) == 1 else f"{len(plan.recipes)} recipes"
    if not before:
        return f"{'1 image' if plan.cells == 1 else f'{plan.cells} images'}, {recipes}"
    return f"{plan.cells - before} of {plan.cells} images to make ({before} are made), {recipes}"
