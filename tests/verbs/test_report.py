"""The end of a run: what comes before what."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.run import projecting
from sdbatch.run.launch import run_job
from sdbatch.run.outcome import Outcome
from sdbatch.run.prepare import prepare
from sdbatch.verbs import report
from tests.conftest import BASE


@pytest.mark.usefixtures("workspace")
def test_the_grid_is_there_when_the_projection_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def start(folder: Any, *given: Any, **named: Any) -> subprocess.Popen[bytes]:
        seen.append(folder.grid_png.is_file())
        return projecting.start_tracking(folder, *given, **named)

    monkeypatch.setattr(report, "start_tracking", start)
    outcome = run_job(prepare(read_arguments([*BASE, "engine=rehearsal", "out=sweep", "width=16", "height=16", "seed=1,2", "-m"])))
    assert isinstance(outcome, Outcome)
    assert report.finish(outcome, "sqlite:///own.db") == 0
    assert seen == [True]
