"""The supervisor's clocks and limits, with real worker processes and short patience."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.run import child, supervisor
from sdbatch.run.launch import run_job
from sdbatch.run.outcome import Outcome
from sdbatch.run.prepare import prepare
from sdbatch.run.supervisor import describe_exit
from tests.conftest import BASE, Sdbatch

REHEARSAL = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "out=sweep")


def run_here(arguments: Sequence[str]) -> Outcome:
    """Run with the local launcher, in this process."""
    ending = run_job(prepare(read_arguments(arguments)))
    assert isinstance(ending, Outcome)
    return ending


@pytest.mark.usefixtures("workspace")
def test_a_worker_that_hangs_is_killed_and_its_cell_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "HANG_S", 2.5)
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0,))
    outcome = run_here([*REHEARSAL, "prompt=a fox,drill:hang", "batch_size=1", "-m"])
    assert outcome.exit_code == 1
    assert any(re.search(r"has said nothing for \d+ s while denoising 1: killing it", note) for note in outcome.tally.notes)
    found = {row["prompt"]: (row["status"], row["error"]) for row in load_rows(SweepFolder("sweep")).to_pylist()}
    assert found["a fox"] == ("ok", None)
    assert found["drill:hang"][0] == "failed" and "killed, since it said nothing" in str(found["drill:hang"][1])


@pytest.mark.usefixtures("workspace")
def test_a_device_that_only_fails_is_given_up(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(supervisor, "QUARANTINE_CRASHES", 2)
    outcome = run_here([*REHEARSAL, "prompt=drill:crash", "seed=range(0,8)", "batch_size=8", "-m"])
    assert outcome.exit_code == 1
    assert outcome.tally.error is not None
    assert "every device was given up" in outcome.tally.error
    assert not list((workspace / "sweep/rows").glob("*"))


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "SIGKILL (probably out of memory"), (-7, "SIGBUS (a weight file changed"), (3, "exit code 3")]
)
def test_exits_are_told_in_words(code: int, said: str) -> None:
    assert describe_exit(code).startswith(said)


def test_a_tracking_server_that_is_down_costs_no_image(workspace: Path, sdbatch: Sdbatch) -> None:
    arguments = [item for item in REHEARSAL if item != "tracking=none"]
    done = sdbatch(*arguments, "tracking.uri=http://127.0.0.1:9", "seed=range(0,3)", "-m")
    assert done.returncode == 0
    assert "not yet sent" in done.stdout
    assert "sdbatch track sweep" in done.stdout
    sent = sdbatch("track", "sweep", f"uri=sqlite:///{workspace / 'own.db'}")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert (workspace / "own.db").stat().st_size > 0


def test_a_long_sweep_shows_itself_in_mlflow_while_it_runs(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    from sdbatch.run import projecting

    monkeypatch.setattr(projecting, "EVERY_S", 0.5)
    started: list[bool] = []
    start = projecting.start_tracking

    def counted(*given: Any, **named: Any) -> Any:
        started.append(named["running"])
        return start(*given, **named)

    monkeypatch.setattr(projecting, "start_tracking", counted)
    tracked = [item for item in REHEARSAL if item != "tracking=none"]
    uri = f"tracking.uri=sqlite:///{workspace / 'own.db'}"
    arguments = [*tracked, uri, "prompt=drill:slow", "seed=range(0,24)", "batch_size=4", "steps=4", "-m"]
    assert run_here(arguments).exit_code == 0
    assert started
    assert all(started)
    assert (workspace / "own.db").stat().st_size > 0
