"""Two machines on one folder: what the dead of another one left in the making goes, what its living are writing stays.

Another machine is a process in a namespace of its own: it sees no process of ours, and we do not know its numbers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sdbatch.cli import main
from sdbatch.results.disk import TEMPORARY, owner_of
from sdbatch.results.folder import SweepFolder
from sdbatch.results.stray import list_temporary, remove_abandoned, remove_strays
from sdbatch.results.verify import verify
from sdbatch.run import roster
from sdbatch.run.claim import HEARTBEAT_S, claim_path
from tests.conftest import Sdbatch
from tests.engines.sweeps import REHEARSAL, check_exact
from tests.faults.program import environment, until

WORKER = """
import sys, time
from pathlib import Path
from sdbatch.results import disk
from sdbatch.results.folder import SweepFolder
from sdbatch.run.claim import Claims
folder, shard = SweepFolder(sys.argv[1]), int(sys.argv[2])
claims = Claims(folder.claims, f"worker-{shard}")
assert claims.take(shard)
made = disk.write_temporary(folder.images / f"{shard}.png", b"an image")
print(made.name, flush=True)
with claims.beating(every_s=0.02):
    sys.stdin.readline()
print(disk.publish(made, folder.images / f"{shard}.png"), flush=True)
"""


@contextmanager
def elsewhere(folder: SweepFolder, shard: int) -> Generator[tuple[subprocess.Popen[str], Path]]:
    """A worker of another machine that holds a shard and is in the middle of a file."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", WORKER, str(folder.path), str(shard)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout and worker.stderr
        name = worker.stdout.readline().strip()
        if not name:
            pytest.skip(f"no namespace of processes can be made here: {worker.stderr.read()}")
        try:
            yield worker, folder.images / name
        finally:
            worker.kill()


def until_beaten(folder: SweepFolder, shards: Collection[int]) -> Callable[[float], None]:
    """The pause of a watch that lasts until the workers of these shards were heard of."""

    def pause(seconds: float) -> None:
        del seconds
        claims = [claim_path(folder.claims, shard) for shard in shards]
        before = [claim.stat().st_mtime_ns for claim in claims]
        until(lambda: all(claim.stat().st_mtime_ns != at for claim, at in zip(claims, before, strict=True)))

    return pause


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    made = SweepFolder(tmp_path / "sweep")
    made.create()
    roster.clear(made.claims)
    return made


def test_the_dead_of_another_machine_are_cleared_away_and_its_living_are_not(folder: SweepFolder) -> None:
    with ExitStack() as workers:
        living, dead, late = (workers.enter_context(elsewhere(folder, shard)) for shard in range(3))
        dead[0].kill()
        dead[0].wait()
        assert remove_strays(folder) == 0, "nothing is known of them here"
        listed = [path for path in list_temporary(folder) if path != late[1]]
        assert listed and all((owner := owner_of(path.name)) and not owner.is_here for path in listed)
        alive = roster.watch_alive(folder.claims, pause=until_beaten(folder, (0, 2)))
        assert sorted(owner.worker for owner in alive) == ["worker-0", "worker-2"]
        assert remove_abandoned(listed, [owner.process for owner in alive if owner.process]) == 1
        assert living[1].exists() and late[1].exists() and not dead[1].exists()
        told, _ = living[0].communicate("\n", timeout=20)
        assert told.strip() == "True", "it could finish its file"
    assert (folder.images / "0.png").read_bytes() == b"an image"


def test_what_dead_workers_left_goes_when_nobody_is_at_work(
    workspace: Path, sdbatch: Sdbatch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdbatch(*REHEARSAL, "seed=range(0,4)", "-m", check=True)
    sweep = SweepFolder(workspace / "sweep")
    left = [above / f"{TEMPORARY}node7.1a2b3c4d.4026531836-77-1234-0-x.parquet" for above in (sweep.path, sweep.rows, sweep.images)]
    foreign = sweep.images / f"{TEMPORARY}holiday.jpg"
    foreign.touch()
    orders = (["resume", "sweep"], ["compact", "sweep"], ["verify", "sweep", "repair=true"])
    for order in orders:
        for path in left:
            path.touch()
        assert main(["verify", "sweep"]) == 0
        assert "left by dead workers: 3 files" in capsys.readouterr().out
        assert main(order) == 0
        assert not any(path.exists() for path in left) and foreign.exists(), order
    assert verify(sweep).temporary == ()
    check_exact(sweep.path, 4)

    # But not under workers of another machine.
    def watch(seconds: float) -> None:
        assert seconds >= 2 * HEARTBEAT_S
        until_beaten(sweep, (0,))(seconds)

    monkeypatch.setattr(roster, "tell_and_wait", watch)
    roster.clear(sweep.claims)
    with elsewhere(sweep, 0) as (_, making):
        for order in orders[1:]:
            assert main(order) == 2
            assert "1 worker is busy with it" in capsys.readouterr().err
            assert making.exists()
