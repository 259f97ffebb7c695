"""What the engine says of a sweep's workers, beside what the folder says. Optional: nothing depends on the answer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers import ray, slurm
from sdbatch.run.launchers.command import Submission, read_submissions

ASK_S = 30.0
"""Between two questions of somebody who watches."""


@dataclass(frozen=True)
class EngineState:
    """The workers that an engine has of one submission."""

    submission: Submission
    counts: dict[str, int] | None
    """State in the engine's own words -> workers; those that have ended are left out. None: the engine does not answer."""

    @property
    def alive(self) -> int:
        """Workers that run or will, as far as is known."""
        return sum((self.counts or {}).values())

    def __str__(self) -> str:
        if self.counts is None:
            return f"{self.submission}: no answer"
        return f"{self.submission}: {', '.join(f'{number} {state}' for state, number in self.counts.items()) or 'none left'}"


_known: dict[Path, tuple[float, list[EngineState]]] = {}


def engine_states(folder: SweepFolder, max_age_s: float = 0.0) -> list[EngineState]:
    """The state of every submission of this sweep; empty for a local one.

    With `max_age_s` an answer that young is given again: engines are not to be asked every second.
    """
    asked_s, known = _known.get(folder.path, (-math.inf, []))
    if time.monotonic() - asked_s <= max_age_s:
        return known
    found = [EngineState(item, (slurm if item.engine == "slurm" else ray).count(item)) for item in read_submissions(folder)]
    _known[folder.path] = (time.monotonic(), found)
    return found
