"""Clocks that are wrong, differ between machines, or are set while a sweep runs: nothing goes by them.

A machine's clock is what its programs read through Python; files keep the dates of whoever keeps the folder, as on a
file server. The clock that measures durations is right on every machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.run.progress import measure
from tests.faults.conftest import SLOW
from tests.faults.program import (
    BY_CHANCE,
    QUIET,
    Ended,
    check_sound,
    check_whole,
    command,
    environment,
    kill,
    run,
    start,
    until,
    workers_of,
)

DAY_S = 86_400
YEAR_2039_S = 4_500 * DAY_S
"""Ahead of now: beyond what 32 bits count."""

READ_BY_PYTHON_FIRST = """
import datetime, glob, os, time
honest_ns, honest_datetime = time.time_ns, datetime.datetime
def time_ns():
    with open(os.environ["CLOCK_OF_THIS_MACHINE"]) as file:
        return honest_ns() + eval(file.read()) * 10**9
class Kind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, honest_datetime)
class Datetime(honest_datetime, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return honest_datetime.fromtimestamp(time_ns() / 1e9, tz)
time.time_ns, time.time, datetime.datetime = time_ns, lambda: time_ns() / 1e9, Datetime
"""


class Clock:
    """A clock that is so many seconds ahead; a program that is given `variables` goes by it."""

    def __init__(self, folder: Path, ahead_s: int | str) -> None:
        """`ahead_s` may be an expression, for a clock that is set while it is read."""
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(READ_BY_PYTHON_FIRST)
        (folder / "ahead_s").write_text(str(ahead_s))
        paths = os.pathsep.join([str(folder), environment()["PYTHONPATH"]])
        self.variables = {"PYTHONPATH": paths, "CLOCK_OF_THIS_MACHINE": str(folder / "ahead_s")}


def seconds_told(ended: Ended) -> float:
    found = re.search(r"images? made in (\d+) s", ended.told)
    assert found, ended.told
    return float(found[1])


def check_durations(folder: Path) -> None:
    """What took a moment is recorded as that."""
    for row in load_rows(SweepFolder(folder), ["encode_s", "denoise_s", "decode_s"]).to_pylist():
        assert all(0 <= seconds < 60 for seconds in row.values()), row


def test_a_clock_that_is_set_while_the_sweep_runs_changes_nothing(tmp_path: Path, clean_slow: Path) -> None:
    folder = tmp_path / "sweep"
    parts = f"len(glob.glob({str(folder / 'rows/part-*')!r}))"
    clock = Clock(tmp_path / "clock", f"({YEAR_2039_S}, {-DAY_S}, {40 * DAY_S})[min({parts}, 2)]")
    ended = run(tmp_path, *SLOW, "out=sweep", variables=clock.variables)
    check_whole(folder, clean_slow, ended)
    assert seconds_told(ended) < 60
    check_durations(folder)
    assert len({row["made_at"].date() for row in load_rows(SweepFolder(folder), ["made_at"]).to_pylist()}) > 1, "no clock was set"


def test_a_resume_after_the_clock_was_set_back_makes_what_is_missing_and_its_rows_count(tmp_path: Path, clean_slow: Path) -> None:
    folder = tmp_path / "sweep"
    driver = start(tmp_path, *SLOW, "out=sweep", variables=Clock(tmp_path / "ahead", YEAR_2039_S).variables)
    until(lambda: SweepFolder(folder).parts())
    kill(driver)
    until(lambda: not workers_of(folder))  # else the run would join them, and leave what they look after
    next(iter((folder / "images").glob("[0-9a-f]*.png"))).unlink()
    ended = run(tmp_path, *SLOW, "out=sweep", variables=Clock(tmp_path / "back", -DAY_S).variables)
    check_whole(folder, clean_slow, ended, but=BY_CHANCE)
    assert seconds_told(ended) < 60


def test_machines_whose_clocks_are_years_apart_share_a_sweep(tmp_path: Path) -> None:
    """Another machine is a namespace of processes of its own, in which a worker joins the sweep."""
    if os.geteuid():
        pytest.skip("no namespace of processes can be made here: not root")
    sweep = (*QUIET, "seed=range(0,64)", "prompt=drill:slow", "steps=3", "-m")
    driver = start(tmp_path, *sweep, "out=sweep", variables=Clock(tmp_path / "ahead", YEAR_2039_S).variables)
    folder = SweepFolder(tmp_path / "sweep")
    until(folder.parts)
    (first,) = workers_of(folder.path)
    os.kill(first, signal.SIGSTOP)  # until the other is at work
    before = len(folder.parts())
    elsewhere = ("unshare", "--pid", "--fork", "--kill-child", *command("worker", str(folder.path), "index=1", "workers=2"))
    variables = environment(**Clock(tmp_path / "behind", -DAY_S).variables)
    with subprocess.Popen(elsewhere, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
        try:
            until(lambda: len(folder.parts()) > before + 1)
            os.kill(first, signal.SIGCONT)
            found = measure(folder)
            assert found.busy == ["worker-0", "worker-1"] and found.images_per_s and 0.1 < found.images_per_s < 100, found.facts()
            joined, _ = other.communicate(timeout=120)
            told, _ = driver.communicate(timeout=120)
        finally:
            driver.kill()
            other.kill()
    assert (driver.returncode, other.returncode) == (0, 0), told + joined
    check_sound(folder.path)
    rows = load_rows(folder, ["worker", "made_at"]).to_pylist()
    assert len(rows) == 64 and {row["worker"] for row in rows} == {"worker-0", "worker-1"}
    assert len({row["made_at"].year for row in rows}) == 2, "no clock was wrong"
    assert "died" not in told + joined
    check_durations(folder.path)
