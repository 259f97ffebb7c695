"""The order in which workers go through a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.results.disk import Process
from sdbatch.run.claim import Claims
from sdbatch.run.lease import Owner
from sdbatch.run.roster import clear, remove
from sdbatch.run.share import LINGERING, Share


class Waited(Exception):
    """A worker would have waited."""


def never(_: float) -> None:
    raise Waited


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clear(tmp_path / "claims")
    return tmp_path / "claims"


def loads(recipes: list[int]) -> int:
    return sum(before != after for before, after in zip([-1, *recipes], recipes, strict=False))


def test_one_worker_goes_through_the_plan_in_its_order(folder: Path) -> None:
    share = Share(Claims(folder, "a"), [0] * 12, 0, 1)
    assert list(share.iter_claimed(never)) == list(range(12))


def test_workers_side_by_side_do_everything_once_and_load_few_weights(folder: Path) -> None:
    recipes = [shard // 25 for shard in range(1000)]  # 40 recipes
    claims = [Claims(folder, f"w{index}") for index in range(16)]
    walks = [Share(claims[index], recipes, index, 16).iter_claimed(never) for index in range(16)]
    made: list[list[int]] = [[] for _ in walks]
    left = set(range(16))
    turn = 0
    while left:
        turn += 1
        for index in sorted(left):
            if turn % (1 + index % 3):
                continue  # some are three times as slow
            shard = next(walks[index], None)
            if shard is None:
                left.discard(index)
                continue
            made[index].append(shard)
            claims[index].finish(shard)
    assert sorted(shard for shards in made for shard in shards) == list(range(1000))
    assert max(map(len, made)) > 1.5 * min(map(len, made)), "the fast ones took over from the slow ones"
    total = sum(loads([recipes[shard] for shard in shards]) for shards in made)
    assert total <= 40 + 6 * 16, f"{total} loads of 40 recipes by 16 workers; each taking every 16th shard loads 640 times"


def test_what_is_left_is_taken_with_the_weights_at_hand_first(folder: Path) -> None:
    recipes = [0, 0, 1, 1, 1, 1, 0, 0, 2, 2]
    share = Share(Claims(folder, "a"), recipes, 0, 5)
    walked = list(share.iter_claimed(never))
    assert walked[:2] == [0, 1]
    assert sorted(walked[2:4]) == [6, 7]
    assert loads([recipes[shard] for shard in walked]) == 3


def test_a_finished_sweep_is_left_at_once(folder: Path) -> None:
    clear(folder, range(1300))
    assert list(Share(Claims(folder, "a"), [0] * 1300, 2, 4).iter_claimed(never)) == []


def held_elsewhere(folder: Path, shard: int) -> Claims:
    other = Claims(folder, "other")
    other.take(shard)
    next(folder.glob(f"*/{shard:06d}")).write_text(str(Owner("other", Process("far/1/1", 7, "1"))))
    return other


def test_the_first_workers_wait_for_a_silent_owner_and_take_over_its_shard(folder: Path) -> None:
    held_elsewhere(folder, 1)
    now_s = [0.0]
    claims = Claims(folder, "a", lease_s=80, clock=lambda: now_s[0])

    def pause(seconds: float) -> None:
        now_s[0] += seconds

    assert list(Share(claims, [0, 0, 0], 0, 2).iter_claimed(pause)) == [0, 2, 1]
    assert 80 <= now_s[0] <= 100


def test_a_living_owner_elsewhere_is_waited_for_until_it_is_done(folder: Path) -> None:
    other = held_elsewhere(folder, 1)
    now_s = [0.0]

    def pause(seconds: float) -> None:
        now_s[0] += seconds
        other.beat()
        if now_s[0] > 1000:
            other.finish(1)

    claims = Claims(folder, "a", lease_s=80, clock=lambda: now_s[0])
    assert list(Share(claims, [0, 0], 0, 2).iter_claimed(pause)) == [0]
    assert now_s[0] > 1000


def test_the_many_do_not_wait_and_nobody_waits_for_a_process_of_this_machine(folder: Path) -> None:
    held_elsewhere(folder, 1)
    assert list(Share(Claims(folder, "a"), [0, 0], LINGERING, 2 * LINGERING).iter_claimed(never)) == [0]
    clear(folder)
    Claims(folder, "b").take(1)
    assert list(Share(Claims(folder, "a"), [0, 0], 0, 2).iter_claimed(never)) == [0]


def test_a_sweep_that_has_ended_is_left_without_a_word(folder: Path) -> None:
    """Who closes it takes the claims away, whoever still looks for work or has just finished some."""
    claims = Claims(folder, "a")
    share = Share(claims, [0, 0, 0], 0, 1).iter_claimed(never)
    first = next(share)
    remove(folder)
    claims.finish(first)
    assert not claims.take(1)
    assert list(share) == [] and not folder.exists()
