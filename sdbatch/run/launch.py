"""Run a job in its folder: take up what is there, make what is missing, show and record the rest."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdbatch import __version__
from sdbatch.errors import FolderError, WeightFileError
from sdbatch.plan.files import config_sha256
from sdbatch.plan.store import PlanFile, write_plan
from sdbatch.results.disk import write_file
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Committed, committed
from sdbatch.results.upkeep import merge_parts, recover
from sdbatch.run import claim
from sdbatch.run.device import find_places
from sdbatch.run.display import build_watcher
from sdbatch.run.prepare import Job
from sdbatch.run.projecting import Projecting
from sdbatch.run.settings import Settings
from sdbatch.run.supervisor import Supervisor, Tally
from sdbatch.tracking.target import redact
from sdbatch.weights.hashes import Hasher

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pyarrow", "mlflow", "hydra-core")
MANY_PARTS = 256
"""More small parts than this are merged when a run ends: each costs every reader a millisecond."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: SweepFolder
    settings: Settings
    cells: int
    """Cells of the plan."""
    before: int
    """Of these, made before this run."""
    tally: Tally
    state: Committed

    @property
    def done(self) -> int:
        """Cells of the plan that are made now."""
        return self.before + self.tally.made

    @property
    def exit_code(self) -> int:
        """0 all made; 1 some failed, or a fault stopped it; 128 and the signal when one stopped it."""
        if self.tally.signal_number and self.done + self.tally.failed < self.cells:
            return 128 + self.tally.signal_number
        return 0 if self.tally.error is None and self.done == self.cells else 1


def run_job(job: Job) -> Outcome:
    """Run a prepared job. Raises FolderError before anything is made if the folder cannot be used."""
    folder = SweepFolder(job.out)
    folder.create()
    with folder.lock():
        state = recover(folder, retry_faulty=True)
        settle_plan(folder, job, state)
        write_file(folder.config, config_text(job).encode())
        about = folder.read_about()
        facts = {"name": job.settings.name, "plan_id": job.plan.plan_id, "cells": len(job.plan), "axes": job.axes, "versions": versions()}
        folder.write_about({**about, **facts, "settings": redacted(job.settings)})
        return _supervise(folder, job.settings, job.settings.tracking_uri, state)


def resume(path: Path, uri: str | None = None) -> Outcome:
    """Go on with the sweep in a folder; `uri` is its tracking server, where that has a password. Raises FolderError."""
    folder = SweepFolder(path)
    if not folder.plan.is_file():
        raise FolderError(f"{path}: there is no sweep to go on with (no plan.parquet). Give the folder of a sweep, such as outputs/NAME.")
    with folder.lock():
        check_files(PlanFile(folder.plan))
        settings = Settings.from_dict(folder.read_about().get("settings", {"name": path.name}))
        return _supervise(folder, settings, uri or settings.tracking_uri, recover(folder, retry_faulty=True))


def check_files(plan: PlanFile) -> None:
    """Refuse to go on when a file is not what it was when the plan was made: its images would not be the plan's."""
    hasher = Hasher()
    for (group, asked), file in plan.files.items():
        path = Path(file.path)
        if not path.exists():
            raise WeightFileError(f"{group}={asked}: {path} is gone. Put it back, or run the sweep's own command again to plan without it.")
        found = config_sha256(path) if group == "config" else hasher.sha256(path)
        if found != file.sha256:
            said = f"{group}={asked}: {path} has changed since the plan was made ({file.sha256[:10]}, now {found[:10]})."
            raise WeightFileError(f"{said} Run the sweep's own command again: it makes the images of the new file, and keeps the old.")


def settle_plan(folder: SweepFolder, job: Job, state: Committed) -> None:
    """Keep the plan that is there if it names the same images and its work is all accounted for; else write this one.

    Keeping it matters: the shards and so the batches stay as they were, and a resumed sweep makes the same bytes.
    """
    there: PlanFile | None = None
    with suppress(FolderError):  # missing or damaged: written anew
        there = PlanFile(folder.plan)
    if there is not None and there.plan_id == job.plan.plan_id and not _lost_adopted(there, state):
        return
    write_plan(job.plan.adopt(state.done), folder.plan)


def _lost_adopted(plan: PlanFile, state: Committed) -> bool:
    """Whether a cell that was made before its plan is not there any more, so that no shard would make it."""
    done = state.done
    return any(shard < 0 and image_id not in done for ids, shards in plan.iter_ids() for image_id, shard in zip(ids, shards, strict=True))


def _supervise(folder: SweepFolder, settings: Settings, uri: str | None, state: Committed) -> Outcome:
    plan = PlanFile(folder.plan)
    done = state.done
    before = sum(sum(image_id in done for image_id in ids) for ids, _ in plan.iter_ids())
    tally = Tally(plan.cells - before)
    if tally.total:
        places = find_places(settings.device, settings.threads)[: max(1, plan.shards)]
        claim.clear(folder.claims)
        recipes = "1 recipe" if len(plan.recipes) == 1 else f"{len(plan.recipes)} recipes"
        devices = ", ".join(place.device for place in places)
        sys.stderr.write(f"{settings.name}: {_ask(plan.cells, before)}, {recipes}, on {devices}\n")
        watcher = Projecting(build_watcher(settings.name), folder, settings, uri)
        tally = Supervisor(folder, places, tally.total, watcher).run()
        watcher.close()
        claim.remove(folder.claims)
        if len(folder.parts()) > MANY_PARTS:
            merge_parts(folder)
        state = committed(folder)
    return Outcome(folder, settings, plan.cells, before, tally, state)


def _ask(cells: int, before: int) -> str:
    if not before:
        return "1 image" if cells == 1 else f"{cells} images"
    return f"{cells - before} of {cells} images to make ({before} are made)"


def versions() -> dict[str, str]:
    """Versions of sdbatch, Python and the libraries that make and store the images."""
    return {"sdbatch": __version__, "python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as they may be written down: without a password in the tracking URI."""
    return {**settings.to_dict(), "tracking_uri": settings.tracking_uri and redact(settings.tracking_uri)}


def config_text(job: Job) -> str:
    """`config.yaml`: the resolved base configuration and the axes, readable and diffable."""
    axes = "".join(f"#   {key}: {count} values\n" for key, count in job.axes.items()) or "#   none\n"
    head = f"# {job.settings.name}: {len(job.plan)} images. Axes (their values are in plan.parquet):\n{axes}"
    return redact(head + yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True, width=140))
