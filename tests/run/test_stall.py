"""A task that reaches its time limit without an image, life after life."""

from __future__ import annotations

from pathlib import Path

from sdbatch.run.stall import count_fruitless, stalled


def test_lives_without_an_image_are_counted_in_a_row_and_by_task(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    assert count_fruitless(claims, "5_1", is_fruitful=False) == 1
    assert count_fruitless(claims, "5_2", is_fruitful=False) == 1
    assert count_fruitless(claims, "5_1", is_fruitful=True) == 0
    assert count_fruitless(claims, "5_1", is_fruitful=False) == 1
    assert stalled(tmp_path, claims) == []
    assert count_fruitless(claims, "5_1", is_fruitful=False) == 2
    (told,) = stalled(tmp_path, claims)
    assert told.startswith("slurm job 5_1 was at its time limit 2 times in a row before one image was made")
    assert f"sdbatch resume {tmp_path} hydra.launcher.timeout_min=" in told


def test_claims_that_are_gone_say_nothing(tmp_path: Path) -> None:
    assert count_fruitless(tmp_path / "claims", "5", is_fruitful=False) == 1
    assert stalled(tmp_path, tmp_path / "claims") == []
