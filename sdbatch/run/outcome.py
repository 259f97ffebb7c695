"""How a run ended, or to whom it was handed."""

from __future__ import annotations

from dataclasses import dataclass

from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Index
from sdbatch.run.launchers.command import Submission
from sdbatch.run.settings import Settings
from sdbatch.run.supervisor import Tally


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
    state: Index

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


@dataclass(frozen=True)
class Handed:
    """Work that was handed to an engine: it goes on without this process."""

    folder: SweepFolder
    settings: Settings
    left: int
    """Cells to make."""
    submissions: list[Submission]
    """What was submitted now, and before when its workers are still there."""
    new: int
    """Workers that were submitted now."""


@dataclass(frozen=True)
class Printed:
    """A job file for an engine that sdbatch does not talk to."""

    text: str


def count(plan: PlanFile, state: Index) -> tuple[int, int]:
    """How many cells of the plan are made, and how many were tried in vain."""
    made = faulty = 0
    for ids, _, _ in plan.iter_keys():
        made += int(state.done.contains(ids).sum())
        faulty += int(state.faulty.contains(ids).sum())
    return made, faulty
