"""A file system that takes its time: who waits for it is not taken for dead, who hangs elsewhere is, and both are told.

strace holds up single calls of the workers. The program's patience is a few seconds here instead of a minute.
"""

from __future__ import annotations

import io
import re
import shutil
import time
from pathlib import Path

import pytest

from sdbatch.run.message import Blocked, Loading, Message, Reporter, parse
from sdbatch.run.pulse import TRICKLE_BYTES, Pulse
from tests.faults.program import QUIET, check_whole, impatient, run, until

PATIENCE_S = 6
DELAY_S = 11
SWEEP = (*QUIET, "seed=range(0,48)", "-m")
"""Two shards."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(folder, *SWEEP, "out=sweep").code == 0
    return folder / "sweep"


@pytest.mark.parametrize(
    ("call", "path", "number"),
    [("fsync", "images", 1), ("openat", "claims/0000/000001", 1)],
    ids=["the writer flushes images", "the worker claims its next shard"],
)
def test_a_worker_that_waits_for_the_disk_is_told_of_and_left_alone(
    tmp_path: Path, undisturbed: Path, call: str, path: str, number: int
) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: apt-get install -y strace")
    slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(tmp_path / "sweep" / path), "-e", f"trace={call}"]
    slow += ["-e", f"inject={call}:delay_enter={DELAY_S * 1_000_000}:when={number}"]
    program = impatient(child__HANG_S=PATIENCE_S, supervisor__BLOCKED_S=PATIENCE_S)
    began_s = time.monotonic()
    ended = run(tmp_path, *SWEEP, "out=sweep", before=slow, program=program)
    if "attach" in ended.errors or "PTRACE" in ended.errors:
        pytest.skip(f"strace cannot trace here: {ended.errors}")
    assert time.monotonic() - began_s > DELAY_S, "nothing was held up"
    assert re.search(r"worker-0 \(cpu\) has waited for \d+ s for the file system of sweep\. It goes on", ended.errors), ended.errors
    assert "killing it" not in ended.errors and "died" not in ended.errors
    check_whole(tmp_path / "sweep", undisturbed, ended)


def heard(said: io.StringIO) -> list[Message]:
    return [message for line in said.getvalue().splitlines() if (message := parse(line))]


def test_a_pulse_tells_waiting_for_the_folder_and_reading_weights_from_hanging() -> None:
    said = io.StringIO()
    pulse = Pulse(Reporter(said), every_s=0.1)
    with pulse.busy(), pulse.beating():
        time.sleep(0.5)
    assert heard(said) == [], "the engine speaks for itself"
    with pulse.loading("a checkpoint"):
        with pulse.beating():
            time.sleep(0.5)
        assert heard(said) == [Loading("a checkpoint")], "once, as it began: nothing was read"
        with pulse.beating(), Path("/dev/zero").open("rb") as zeros:
            until(lambda: zeros.read(2 * TRICKLE_BYTES) and heard(said).count(Loading("a checkpoint")) > 2)
    with pulse.beating():
        until(lambda: isinstance(heard(said)[-1], Blocked))
    last = heard(said)[-1]
    assert isinstance(last, Blocked) and 0.1 <= last.seconds < 60
    count = len(heard(said))
    time.sleep(0.3)
    assert len(heard(said)) == count
