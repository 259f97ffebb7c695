"""A task of an engine that reaches its time limit again and again and makes nothing would go on so for ever."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sdbatch.errors import FolderError
from sdbatch.results.disk import write_file

LIVES = 2
"""So many time limits in a row without one image, and a task is given up. Once may be a slow first read of the weights."""
PREFIX = "stalled-"


def count_fruitless(claims: Path, job: str, *, is_fruitful: bool) -> int:
    """Take down how a life of this task ended; returns how many in a row have made nothing."""
    path = claims / f"{PREFIX}{job}"
    if is_fruitful:
        path.unlink(missing_ok=True)
        return 0
    try:
        lives = int(path.read_text()) + 1
    except (OSError, ValueError):
        lives = 1
    with suppress(FolderError):  # the claims are gone: so is the work
        write_file(path, f"{lives}\n".encode())
    return lives


def stalled(folder: Path, claims: Path) -> list[str]:
    """Why tasks were given up, for who looks at the sweep."""
    found: list[str] = []
    for path in sorted(claims.glob(f"{PREFIX}*")):
        with suppress(OSError, ValueError):
            if int(path.read_text()) >= LIVES:
                found.append(describe(path.name.removeprefix(PREFIX), folder))
    return found


def describe(job: str, folder: Path) -> str:
    """Why a task is given up, and what to do."""
    limit = "Its time limit must be longer than it takes to load the model and to make a batch"
    return (
        f"slurm job {job} was at its time limit {LIVES} times in a row before one image was made, and is given up. "
        f"{limit}: sdbatch resume {folder} hydra.launcher.timeout_min=..., or plan with a smaller batch_size."
    )
