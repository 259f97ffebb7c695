"""Watching a sweep that an engine's workers make: its end, and what is told of work that nobody is left to do."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import read_index
from sdbatch.run import follow as follow_module
from sdbatch.run.device import Place
from sdbatch.run.engine_state import EngineState
from sdbatch.run.follow import follow
from sdbatch.run.launch import close
from sdbatch.run.launchers.command import Submission
from sdbatch.run.message import Reporter
from sdbatch.run.outcome import count
from sdbatch.run.prepare import prepare
from sdbatch.run.settings import Settings
from sdbatch.run.settle import open_claims, settle, take_up
from sdbatch.run.supervisor import Watcher
from sdbatch.run.worker import Worker
from tests.conftest import BASE

SWEEP = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "width=16", "height=16", "seed=range(0,64)", "batch_size=4", "-m")
ARRAY = Submission("slurm", "7", 2)


@pytest.fixture
def folder(workspace: Path) -> SweepFolder:
    """A planned sweep of two shards whose workers were handed to an engine."""
    job = prepare(read_arguments([*SWEEP, "out=sweep"]))
    made = SweepFolder(workspace / "sweep")
    made.create()
    state = take_up(made)
    settle(made, job, state)
    open_claims(made, PlanFile(made.plan), state)
    return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int] | None], None]:
    """What the engine answers from now on: its workers by state, or nothing."""
    answer: list[dict[str, int] | None] = [None]

    def states(folder: SweepFolder, max_age_s: float = 0.0) -> list[EngineState]:
        return [EngineState(ARRAY, answer[0])]

    monkeypatch.setattr(follow_module, "engine_states", states)
    monkeypatch.setattr(follow_module, "ASK_S", 0.0)
    monkeypatch.setattr(follow_module, "LOOK_S", 0.05)

    def say(counts: dict[str, int] | None) -> None:
        answer[0] = counts

    return say


def test_shards_that_nobody_is_left_to_make_are_a_fault_that_names_the_job(
    folder: SweepFolder, engine: Callable[[dict[str, int] | None], None]
) -> None:
    """Half of an array was cancelled, or never began."""
    worker = Worker(folder, Place(0, 2), Reporter(io.StringIO()))
    assert worker.claims.take(1)
    worker.claims.finish(1)  # so that this worker makes the other one alone
    assert worker.run() == 0
    engine({})
    tally = follow(folder, 0, Watcher())
    assert tally.error == (
        f"2 workers, slurm job 7: none left, and nobody else is at work. The workers' logs tell why ({folder.path / 'slurm'}, or Ray's)."
    )
    outcome = close(folder, Settings.from_dict(folder.read_about()["settings"]), 0, tally)
    assert (outcome.exit_code, outcome.done, outcome.cells) == (1, 32, 64)


@pytest.mark.parametrize("answer", [None, {"PENDING": 2}], ids=["it does not answer", "they wait for a place"])
def test_workers_that_have_not_begun_are_waited_for(
    folder: SweepFolder, engine: Callable[[dict[str, int] | None], None], answer: dict[str, int] | None
) -> None:
    engine(answer)

    def begin_late() -> None:
        time.sleep(0.6)
        Worker(folder, Place(), Reporter(io.StringIO())).run()

    late = threading.Thread(target=begin_late)
    late.start()
    tally = follow(folder, 0, Watcher())
    late.join()
    assert (tally.error, tally.made) == (None, 64)
    assert count(PlanFile(folder.plan), read_index(folder)) == (64, 0)
