"""Work spread over processes: the same results in the same order, whatever happens to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.weights import spread
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.index import Index
from sdbatch.weights.spread import map_files
from tests.conftest import heed_interrupts
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors

PATHS = [Path(f"{number}.safetensors") for number in range(80)]


def _four_cores(_: int) -> set[int]:
    return set(range(4))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes from the first file on, even where the test runner has threads of its own."""
    monkeypatch.setattr(spread, "PATIENCE_S", -1.0)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", _four_cores)


@pytest.mark.usefixtures("impatient")
def test_several_processes_give_what_one_does_in_its_order() -> None:
    found = list(map_files(lambda path: (path.stem, os.getpid()), PATHS))
    assert [stem for stem, _ in found] == [path.stem for path in PATHS]
    assert len({pid for _, pid in found} - {os.getpid()}) == 4


@pytest.mark.parametrize("condition", [("PATIENCE_S", 60.0), ("MANY", 1000), ("MOST_PROCESSES", 1)])
@pytest.mark.usefixtures("impatient")
def test_what_is_quick_or_short_stays_in_one_process(monkeypatch: pytest.MonkeyPatch, condition: tuple[str, float]) -> None:
    monkeypatch.setattr(spread, *condition)
    assert set(map_files(lambda path: os.getpid(), PATHS)) == {os.getpid()}


@pytest.mark.usefixtures("impatient")
def test_a_program_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert set(map_files(lambda path: os.getpid(), PATHS)) == {os.getpid()}


@pytest.mark.usefixtures("impatient")
def test_the_work_of_a_process_that_dies_is_done_by_who_asked() -> None:
    mother = os.getpid()

    def work(path: Path) -> str:
        if path.stem == "17" and os.getpid() != mother:
            os.kill(os.getpid(), signal.SIGKILL)
        return path.stem

    assert list(map_files(work, PATHS)) == [path.stem for path in PATHS]


@pytest.mark.usefixtures("impatient")
def test_who_stops_listening_leaves_no_process() -> None:
    found = map_files(lambda path: os.getpid(), PATHS)
    pids = {next(found) for _ in range(8)} - {os.getpid()}
    assert pids
    close: Callable[[], None] = vars(type(found))["close"].__get__(found)
    close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.usefixtures("impatient")
def test_a_folder_listed_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        tensors = d.kohya(d.unet_modules((768, 2048)[number % 2]), rank=4 + number)
        write_safetensors(tmp_path / f"loras/{number:02}.safetensors", tensors)
    (tmp_path / "loras/bad.safetensors").write_text("<html>")
    spread_out = list(Index(tmp_path / "one").list_catalog(Catalog([tmp_path])))
    monkeypatch.setattr(spread, "MOST_PROCESSES", 1)
    assert list(Index(tmp_path / "two").list_catalog(Catalog([tmp_path]))) == spread_out
    assert sum(1 for item in spread_out if item.fault) == 1


_ENDLESS = """
import os, sys, time
from pathlib import Path
from sdbatch.weights import spread
spread.PATIENCE_S = -1
os.sched_getaffinity = lambda _: {0, 1}
def work(path):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.05)
for _ in spread.map_files(work, [Path(str(n)) for n in range(10_000)]):
    pass
"""


_LATE = """
import os, signal, time
honest = signal.signal
def late(*given):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.5)
    honest(*given)
signal.signal = late
"""
"""Its processes tell that they have begun, and come to ignore Ctrl-C only then."""


@pytest.mark.parametrize("script", [_ENDLESS, _LATE + _ENDLESS], ids=["at work", "beginning"])
def test_ctrl_c_ends_all_of_it_without_a_word_from_the_others(script: str) -> None:
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_interrupts
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids: set[int] = set()
        while len(pids) < 2:
            pids.add(int(process.stdout.readline()))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1, said  # the script's own: it is one that does not catch KeyboardInterrupt
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
