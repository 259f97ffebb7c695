"""Claims on shards: one owner at a time, taken over from the dead, never from the living."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sdbatch.results.disk import Process
from sdbatch.run import claim
from sdbatch.run.claim import Claims
from sdbatch.run.crash import Crash, Crashes
from sdbatch.run.lease import Owner
from sdbatch.run.roster import clear, drop_dead, iter_owners, remove, watch_alive
from tests.engines.waiting import wait_for


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clear(tmp_path / "claims")
    return tmp_path / "claims"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(claims: Claims, shard: int) -> None:
    """Let a claim look as if a process of another machine had made it."""
    next(claims.folder.glob(f"*/{shard:06d}")).write_text(str(Owner(claims.worker, Process("other/1/1", 7, "1"))))


def test_a_shard_has_one_owner_until_it_is_given_back_or_finished(folder: Path) -> None:
    first, second = Claims(folder, "a"), Claims(folder, "b")
    assert first.take(3) and not second.take(3) and not first.take(3)
    assert first.holds(3) and not second.holds(3)
    second.drop(3)  # not its own
    assert not second.take(3)
    first.drop(3)
    assert second.take(3)
    second.finish(3)
    assert not first.take(3) and not second.take(3)
    assert second.read_group(0).done == {3}


def test_many_claimers_share_out_every_shard_once(folder: Path) -> None:
    got: list[int] = []
    barrier = threading.Barrier(8)

    def work(index: int) -> None:
        claims = Claims(folder, f"w{index}")
        barrier.wait()
        got.extend(shard for shard in range(200) if claims.take(shard))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))


def test_a_silent_owner_elsewhere_loses_its_claim_after_a_lease_and_not_before(folder: Path, clock: Clock) -> None:
    owner, observer = Claims(folder, "a"), Claims(folder, "b", lease_s=120, clock=clock)
    owner.take(0)
    elsewhere(owner, 0)
    assert not observer.take_over(0)
    for _ in range(10):
        clock.now_s += 60
        owner.beat()
        assert not observer.take_over(0), "its heart beats"
    clock.now_s += 119
    assert not observer.take_over(0)
    clock.now_s += 1
    assert observer.take_over(0) and observer.holds(0)
    assert owner.beat() == [0] and not owner.holds(0)
    owner.drop(0)
    assert [(shard, found.worker) for shard, found in iter_owners(folder)] == [(0, "b")], "the former owner touches nothing"


@pytest.mark.parametrize("wrong_by_s", [-86_400, 86_400 * 365 * 12])
def test_clocks_that_disagree_change_nothing(folder: Path, clock: Clock, wrong_by_s: int) -> None:
    owner, observer = Claims(folder, "a"), Claims(folder, "b", lease_s=120, clock=clock)
    owner.take(0)
    elsewhere(owner, 0)
    path = next(folder.glob("*/000000"))
    for beat in range(5):
        then_s = path.stat().st_ctime + wrong_by_s + beat
        os.utime(path, (then_s, then_s))
        clock.now_s += 100
        assert not observer.take_over(0)
    clock.now_s += 121
    assert observer.take_over(0)


def test_the_dead_of_this_machine_are_known_at_once_and_the_living_never_taken_for_dead(folder: Path, clock: Clock) -> None:
    code = "import sys, os; from pathlib import Path; from sdbatch.run.claim import Claims; Claims(Path(sys.argv[1]), 'a').take(5)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    observer = Claims(folder, "b", clock=clock)
    assert watch_alive(folder) == []
    assert observer.take_over(5)
    assert not Claims(folder, "c").take_over(5)
    assert [owner.worker for owner in watch_alive(folder)] == ["b"]


def test_a_claim_without_its_owner_s_name_is_taken_over_after_a_lease(folder: Path, clock: Clock) -> None:
    (folder / "0000").mkdir()
    (folder / "0000/000002").touch()
    observer = Claims(folder, "b", lease_s=10, clock=clock)
    assert not observer.take_over(2) and observer.is_waited_for(2)
    clock.now_s = 10
    assert observer.take_over(2)


def test_one_of_many_observers_takes_over(folder: Path) -> None:
    wins: list[int] = []
    for shard in range(40):
        owner = Claims(folder, "dead")
        owner.take(shard)
        elsewhere(owner, shard)
    clocks = [Clock() for _ in range(6)]
    observers = [Claims(folder, f"w{index}", lease_s=1, clock=clock) for index, clock in enumerate(clocks)]
    for shard in range(40):
        assert not any(observer.take_over(shard) for observer in observers)
    for clock in clocks:
        clock.now_s = 1
    barrier = threading.Barrier(6)

    def work(observer: Claims) -> None:
        barrier.wait()
        wins.extend(shard for shard in range(40) if observer.take_over(shard))

    threads = [threading.Thread(target=work, args=(observer,)) for observer in observers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(40))
    assert not list(folder.rglob(".tmp-*"))


def test_an_owner_that_comes_back_between_the_look_and_the_take_keeps_its_claim(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, observer = Claims(folder, "a"), Claims(folder, "b", lease_s=1, clock=clock)
    owner.take(0)
    elsewhere(owner, 0)

    def beat_first(*_: object) -> bool:
        return not owner.beat()

    monkeypatch.setattr(observer, "_is_stale", beat_first)
    assert not observer.take_over(0)
    assert owner.beat() == [] and owner.holds(0)
    assert [path.name for path in (folder / "0000").iterdir()] == ["000000"]


def test_who_dies_while_taking_over_delays_the_next_by_a_lease(folder: Path, clock: Clock) -> None:
    owner, observer = Claims(folder, "a"), Claims(folder, "b", lease_s=10, clock=clock)
    owner.take(0)
    elsewhere(owner, 0)
    (folder / "0000/.taking-000000").touch()
    for now_s in (0, 10, 20):
        clock.now_s = now_s
        assert not observer.take_over(0)
    assert observer.take_over(0)


def test_a_shard_that_was_finished_is_finished_whoever_holds_it(folder: Path, clock: Clock) -> None:
    owner, observer = Claims(folder, "a"), Claims(folder, "b", lease_s=1, clock=clock)
    owner.take(0)
    elsewhere(owner, 0)
    observer.take_over(0)
    clock.now_s = 1
    assert observer.take_over(0)
    owner.finish(0)
    observer.finish(0)
    assert observer.read_group(0).done == {0} and not observer.read_group(0).held


def test_shards_finished_before_the_run_are_never_claimed(folder: Path) -> None:
    clear(folder, [0, 1, 2, 7, 600])
    claims = Claims(folder, "a")
    assert claims.read_group(0).done == {0, 1, 2, 7} and claims.read_group(1).done == {600}
    remove(folder)
    assert not folder.exists()


def test_a_dead_worker_s_shards_are_given_back(folder: Path) -> None:
    code = f"from pathlib import Path; from sdbatch.run.claim import Claims; Claims(Path({str(folder)!r}), 'a').take(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
    Claims(folder, "b").take(2)
    assert drop_dead(folder) == [1]
    assert [shard for shard, _ in iter_owners(folder)] == [2]


def test_a_heartbeat_keeps_a_claim_and_sees_a_lost_one(folder: Path) -> None:
    claims = Claims(folder, "a")
    claims.take(0)
    path = next(folder.glob("*/000000"))
    os.utime(path, (0, 0))
    with claims.beating(every_s=0.01):
        assert any(path.stat().st_mtime for _ in range(1_000_000))
        path.unlink()
        wait_for(lambda: not claims.holds(0), 10, "the loss to be seen")


def test_a_heartbeat_that_the_file_system_holds_up_holds_up_no_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(folder, "a")
    for shard in range(3):
        claims.take(shard)
    stuck, mended = threading.Event(), threading.Event()
    touch = os.utime

    def slow(*given: Any) -> None:
        stuck.set()
        assert mended.wait(10)
        touch(*given)

    monkeypatch.setattr(os, "utime", slow)
    beat = threading.Thread(target=claims.beat)
    beat.start()
    assert stuck.wait(10)
    claims.finish(1)  # its file is closed while its touch is under way
    claims.drop(2)
    assert claims.take(2)
    assert claims.holds(0) and not claims.holds(1)
    mended.set()
    beat.join()
    assert claims.holds(0) and claims.beat() == []
    assert claims.read_group(0).done == {1}


def test_no_folder_of_claims_grows_beyond_ten_thousand(folder: Path) -> None:
    claims = Claims(folder, "a")
    for shard in range(0, 1_000_000, 12_345):
        assert claims.take(shard)
    assert len(list(folder.iterdir())) <= 2_000
    assert 2 * claim.GROUP_SHARDS < 10_000


def test_crashes_of_all_supervisors_are_summed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = Crashes(folder)
    assert crashes.read() == {}
    crashes.add(["x", "y"], "SIGSEGV")
    assert crashes.read() == {"x": Crash(1, "SIGSEGV"), "y": Crash(1, "SIGSEGV")}
    monkeypatch.setattr(Process, "own", staticmethod(lambda: Process("other/1/1", 9, "1")))
    Crashes(folder).add(["x"], "SIGSEGV")
    assert Crashes(folder).read() == {"x": Crash(2, "SIGSEGV"), "y": Crash(1, "SIGSEGV")}
    assert len(list((folder / "crashes").iterdir())) == 2
