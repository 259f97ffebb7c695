"""The one command that every engine runs, and what was submitted to whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdbatch.errors import ConfigError
from sdbatch.results.disk import write_file
from sdbatch.results.folder import SweepFolder

EXTRA = "hydra/launcher={name} needs {package}, which is not installed here: pip install 'sdbatch[{name}]'."


@dataclass(frozen=True)
class Share:
    """The part of a machine that one worker gets."""

    gpus: int
    cpus: int

    @property
    def words(self) -> list[str]:
        """As `sdbatch worker` takes it."""
        # Said also for GPUs: a node that shows none must fail, not compute on its CPU.
        return [f"devices={'cuda' if self.gpus else 'cpu'}", f"threads={max(1, self.cpus // max(1, self.gpus))}"]


def worker_command(python: Sequence[str], out: Path, share: Share, more: Sequence[str] = ()) -> list[str]:
    """`python -P -m sdbatch worker OUT ...`, by the folder's full path. With -P no file lying there takes the place of a module."""
    return [*python, "-P", "-m", "sdbatch", "worker", str(out.absolute()), *share.words, *more]


@dataclass(frozen=True)
class Submission:
    """What was handed to an engine, as `engine.json` keeps it."""

    engine: str
    """`slurm` or `ray`."""
    job: str
    """As the engine calls it."""
    workers: int
    address: str | None = None
    """Where the engine is, if that has to be said."""

    def __str__(self) -> str:
        count = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{count}, {f'slurm job {self.job}' if self.engine == 'slurm' else 'ray'}"


def write_submission(folder: SweepFolder, submission: Submission) -> None:
    """Keep it beside those before it."""
    kept = [asdict(item) for item in read_submissions(folder)]
    write_file(folder.path / "engine.json", (json.dumps([*kept, asdict(submission)], indent=2) + "\n").encode())


def read_submissions(folder: SweepFolder) -> list[Submission]:
    """What was submitted for this sweep, oldest first."""
    try:
        found: Any = json.loads((folder.path / "engine.json").read_text(encoding="utf-8"))
        return [Submission(**item) for item in found]
    except (OSError, ValueError, TypeError):
        return []


def require(name: str, package: str) -> None:
    """Raises ConfigError, naming the extra, when an engine's Python package is not there. Imports nothing."""
    try:
        found = find_spec(package)
    except ValueError:
        found = None
    if found is None:
        raise ConfigError(EXTRA.format(name=name, package=package))
