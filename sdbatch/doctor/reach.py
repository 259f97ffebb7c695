"""Engines and servers: Slurm, Ray, MLflow. Each is asked one question with little patience."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from sdbatch.doctor.finding import Finding, Site, fault, ok, warning
from sdbatch.doctor.library import version_of
from sdbatch.errors import ConfigError
from sdbatch.run.launchers import ray
from sdbatch.tracking.store import file_system_notice
from sdbatch.tracking.target import Target, redact

PATIENCE_S = 5
USELESS_STATES = ("down", "drain", "fail", "maint", "unk", "inval", "no_respond")


def check_slurm(site: Site) -> Iterator[Finding]:
    """Whether Slurm answers and has nodes; a fault only where the configuration asks for it."""
    say = fault if site.launcher == "slurm" else warning
    if not shutil.which("sinfo") or not shutil.which("sbatch"):
        if site.launcher == "slurm":
            yield fault("engine.slurm", "hydra/launcher=slurm, and there is no sbatch here", "Run on a login node, or load its module.")
        return
    if site.launcher == "slurm" and version_of("submitit") is None:
        yield fault("engine.slurm", "hydra/launcher=slurm, and submitit is not installed", "pip install 'sdbatch[slurm]'")
    try:
        partitions = _ask("sinfo", "--noheader", "--format=%R").split()
        nodes = _ask("sinfo", "--noheader", "--Node", "--format=%N %T")
        _ask("squeue", "--noheader", "--me", "--format=%i")
    except (OSError, subprocess.SubprocessError) as error:
        yield say("engine.slurm", f"Slurm does not answer: {_reason(error)}", "Check `sinfo` and SLURM_CONF, or ask who runs the cluster.")
        return
    states = Counter(line.split()[1] for line in set(nodes.splitlines()) if len(line.split()) == 2)
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    if not any(not state.lower().startswith(USELESS_STATES) and not state.endswith("*") for state in states):
        yield say("engine.slurm", f"no node can take a job ({told or 'there are none'})", "Ask who runs the cluster.")
    else:
        yield ok("engine.slurm", f"Slurm answers; nodes: {told}")
    if (asked := site.options.get("partition")) and not set(str(asked).split(",")) <= set(partitions):
        todo = f"Choose of: {', '.join(partitions)}."
        yield fault("engine.slurm", f"hydra.launcher.partition={asked}: there is no such partition", todo)


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"nothing within {PATIENCE_S} s"
    if isinstance(error, subprocess.CalledProcessError) and str(error.stderr).strip():
        return str(error.stderr).strip().splitlines()[0]
    return str(error)


def check_ray(site: Site) -> Iterator[Finding]:
    """Whether Ray's head answers, where one is named or Ray is to make the images."""
    is_wanted = site.launcher == "ray"
    if is_wanted and version_of("ray") is None:
        yield fault("engine.ray", "hydra/launcher=ray, and ray is not installed", "pip install 'sdbatch[ray]'")
        return
    address = ray.resolve(str(site.options.get("address", "auto")))
    try:
        ray.knock(address)
    except ConfigError as error:
        if is_wanted or "RAY_ADDRESS" in os.environ:
            say = fault if is_wanted else warning
            yield say("engine.ray", str(error), "Correct hydra.launcher.address, or RAY_ADDRESS where that is auto.")
        return
    yield ok("engine.ray", f"{address} answers")


def check_mlflow(site: Site) -> Iterator[Finding]:
    """Whether rows can be tracked. Never a fault: a run does not need it."""
    if site.get("tracking", "backend") == "none":
        yield ok("tracking", "off")
        return
    uri = site.get("tracking", "uri") or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{site.folder.absolute() / 'mlflow.db'}"
    target = Target(str(uri))
    if target.is_server:
        yield _check_server(target)
    elif target.sqlite_file is not None:
        yield _check_sqlite(target, target.sqlite_file)
    else:
        yield ok("tracking", f"{target.name} (not asked)")


LATER = "Images are made all the same; `sdbatch track OUT` sends the rows later."


def _check_server(target: Target) -> Finding:
    parts = urlsplit(target.uri)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(place, timeout=PATIENCE_S) as answer:
            answer.read(1000)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return ok("tracking", f"{target.name} answers (and wants a login)")
        return warning("tracking", f"{target.name} answers {error.code} {error.reason}", LATER)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return warning("tracking", f"{target.name} does not answer: {redact(str(reason))}", LATER)
    return ok("tracking", f"{target.name} answers")


def _check_sqlite(target: Target, file: Path) -> Finding:
    if notice := file_system_notice(file):
        return warning("tracking", notice, "mlflow server on one machine, and tracking.uri=http://...")
    if not file.exists():
        return ok("tracking", f"{target.name} is made with the first run")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)) as database:
            version = database.execute("select version_num from alembic_version").fetchone()
    except sqlite3.Error as error:
        return warning("tracking", f"{target.name}: {error}", f"Move it away; `sdbatch track OUT` fills a new one. {LATER}")
    return ok("tracking", f"{target.name}, schema {version[0] if version else 'unknown'}")
