"""Bringing a folder into the state a run begins from: its plan, its facts, and nobody's claims."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sdbatch import __version__
from sdbatch.config.guard import without_secrets
from sdbatch.errors import FolderError, WeightFileError
from sdbatch.plan.estimate import image_bytes
from sdbatch.plan.files import config_sha256
from sdbatch.plan.store import PlanFile, write_plan
from sdbatch.results.disk import write_file
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Index, committed
from sdbatch.results.stray import list_temporary, remove_abandoned
from sdbatch.results.upkeep import recover
from sdbatch.run import roster
from sdbatch.run.prepare import Job
from sdbatch.run.settings import Settings
from sdbatch.tracking.target import redact
from sdbatch.weights.hashes import Hasher

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pyarrow", "mlflow", "hydra-core")

MAKERS = ("sdbatch", "torch", "diffusers", "transformers", "numpy", "pillow")
"""Of these the ones whose version may change an image."""

BEGAN, NOW = "began", "now"
"""Files among the claims: the time of one is when work was opened."""


def take_up(folder: SweepFolder) -> Index:
    """What is committed; put in order, and with faulty cells to be tried again, unless workers are busy with it."""
    temporary = list_temporary(folder)
    others = roster.watch_alive(folder.claims, pause=roster.tell_and_wait)
    if all(owner.process for owner in others):  # else a living one is not known by its number
        remove_abandoned(temporary, [owner.process for owner in others if owner.process])
    if others:
        sys.stderr.write(f"{folder.path}: {len(others)} workers are busy with it already; this joins them.\n")
        return committed(folder)
    roster.remove(folder.claims)
    return recover(folder, retry_faulty=True)


def settle(folder: SweepFolder, job: Job, state: Index) -> None:
    """Write the plan, the configuration and the facts. Raises FolderError when busy workers go by another plan."""
    settle_plan(folder, job, state)
    write_file(folder.config, config_text(job).encode())
    facts = {"name": job.settings.name, "plan_id": job.plan.plan_id, "cells": len(job.plan), "axes": job.axes, "versions": versions()}
    expected = {"image_bytes": round(image_bytes(job.plan))}
    folder.write_about({**folder.read_about(), **facts, **expected, "settings": redacted(job.settings)})


def settle_plan(folder: SweepFolder, job: Job, state: Index) -> None:
    """Keep the plan that is there if it names the same images and its work is all accounted for; else write this one.

    Keeping it matters: the shards and so the batches stay as they were, and a resumed sweep makes the same bytes.
    """
    there: PlanFile | None = None
    with suppress(FolderError):  # missing or damaged: written anew
        there = PlanFile(folder.plan)
    if there is not None and there.plan_id == job.plan.plan_id and not _lost_adopted(there, state):
        return
    if folder.claims.is_dir():
        raise FolderError(f"{folder.path}: its workers are busy with another plan. Wait for them or stop them; or choose another out=.")
    plan = job.plan.adopt(state.done)
    write_plan(plan, folder.plan, beside=len(state) - len(plan.made))


def _lost_adopted(plan: PlanFile, state: Index) -> bool:
    """Whether a cell that was made before its plan is not there any more, so that no shard would make it."""
    return any(bool(((shards < 0) & ~state.done.contains(ids)).any()) for ids, shards, _ in plan.iter_keys())


def open_claims(folder: SweepFolder, plan: PlanFile, state: Index) -> None:
    """Let workers begin: claims with the shards that need no work, unless workers have begun."""
    if folder.claims.is_dir():
        return
    needed: set[int] = set()
    for ids, shards, _ in plan.iter_keys():
        needed.update(shards[(shards >= 0) & ~state.done.contains(ids)].tolist())
    roster.clear(folder.claims, [shard for shard in range(plan.shards) if shard not in needed])
    (folder.claims / BEGAN).touch()


def seconds_since_begun(folder: SweepFolder) -> float:
    """How long ago work was opened, by the clock that dates the folder's files: those of two machines may differ by days."""
    now = folder.claims / NOW
    try:
        now.touch()
        return max(0.0, now.stat().st_mtime - (folder.claims / BEGAN).stat().st_mtime)
    except OSError:
        return 0.0


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


def versions() -> dict[str, str]:
    """Versions of sdbatch, Python and the libraries that make and store the images."""
    return {"sdbatch": __version__, "python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def tell_versions(folder: SweepFolder) -> None:
    """Tell whoever goes on with a sweep under other versions than it was begun with, and record these. Rows have their own."""
    about, now = folder.read_about(), versions()
    begun: dict[str, str] = about.get("versions", {})
    changed = [f"{name} {begun[name]}, now {now[name]}" for name in MAKERS if begun.get(name, now[name]) != now[name]]
    if changed:
        sys.stderr.write(f"{folder.path}: was begun with {'; '.join(changed)}. Images made from now on may differ in single bits.\n")
        folder.write_about({**about, "versions": now})


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as they may be written down: without a password in the tracking URI, or a token in the workers' environment.

    A resume by another process is given them again, or finds them in its own environment.
    """
    public = {**settings.to_dict(), "tracking_uri": settings.tracking_uri and redact(settings.tracking_uri)}
    return {**public, "launcher": without_secrets(settings.launcher)}


def config_text(job: Job) -> str:
    """`config.yaml`: the resolved base configuration and the axes, readable and diffable."""
    axes = "".join(f"#   {key}: {count} values\n" for key, count in job.axes.items()) or "#   none\n"
    head = f"# {job.settings.name}: {len(job.plan)} images. Axes (their values are in plan.parquet):\n{axes}"
    return redact(head + yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True, width=140))
