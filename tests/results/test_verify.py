from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.results.commit import commit_block
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.upkeep import recover
from sdbatch.results.verify import repair, verify
from sdbatch.results.writer import record
from tests.results.samples import ORIGIN, make_cell, make_picture

IDS = [make_cell(seed).image_id for seed in range(6)]


def image(sweep: SweepFolder, seed: int) -> Path:
    return sweep.images / f"{IDS[seed]}.png"


def test_a_sound_sweep_is_sound(sweep: SweepFolder) -> None:
    report = verify(sweep, full=True)
    assert report.is_sound and report.checked == 6 and not report.orphans and not report.foreign
    assert str(report) == "6 images checked: 0 missing, 0 corrupt"


def test_each_damage_is_named_and_repaired_by_remaking_exactly_that(sweep: SweepFolder) -> None:
    clean = {path.name: path.read_bytes() for path in sweep.images.iterdir()}
    image(sweep, 0).unlink()
    image(sweep, 1).write_bytes(clean[image(sweep, 1).name][:-1])
    flipped = bytearray(clean[image(sweep, 2).name])
    flipped[-30] ^= 4
    image(sweep, 2).write_bytes(flipped)
    image(sweep, 3).write_bytes(b"")
    assert set(verify(sweep).corrupt) == {IDS[1], IDS[3]}, "a flipped bit needs full"
    report = verify(sweep, full=True)
    assert set(report.missing) == {IDS[0]} and set(report.corrupt) == {IDS[1], IDS[2], IDS[3]}
    assert "SHA-256" in report.corrupt[IDS[2]][1] and "its row says" in report.corrupt[IDS[1]][1]
    assert IDS[2] in str(report)
    assert repair(sweep, report) == 4
    assert len(list(sweep.damaged.rglob("*.*"))) == 3
    assert verify(sweep, full=True).is_sound and committed(sweep).done == {IDS[4], IDS[5]}
    rows, images = record(sweep, ORIGIN, [make_picture(seed) for seed in range(4)], 10)
    commit_block(sweep, (0, sweep.next_block(0)), rows, images)
    assert {path.name: path.read_bytes() for path in sweep.images.iterdir()} == clean
    assert load_rows(sweep).num_rows == 6 and verify(sweep, full=True).is_sound


def test_an_unreadable_part_is_put_aside_and_its_images_are_orphans(sweep: SweepFolder) -> None:
    sweep.part(0, 0).write_bytes(sweep.part(0, 0).read_bytes()[:-5])
    report = verify(sweep)
    assert not report.is_sound and report.orphans == tuple(sorted(f"images/{name}.png" for name in IDS[:2]))
    repair(sweep, report)
    assert verify(sweep).is_sound and recover(sweep).done == set(IDS[2:])


def test_foreign_files_are_shown_and_kept(sweep: SweepFolder) -> None:
    (sweep.images / "holiday.jpg").touch()
    (sweep.rows / "notes.txt").touch()
    report = verify(sweep)
    assert report.is_sound and report.foreign == ("images/holiday.jpg", "rows/notes.txt")
    repair(sweep, report)
    assert (sweep.images / "holiday.jpg").exists() and (sweep.rows / "notes.txt").exists()


@pytest.mark.parametrize("times", [3])
def test_files_put_aside_never_overwrite_each_other(folder: SweepFolder, times: int) -> None:
    for number in range(times):
        (folder.rows / "x.parquet").write_text(str(number))
        folder.set_aside([folder.rows / "x.parquet"])
    assert sorted(path.read_text() for path in folder.damaged.rglob("*.*")) == ["0", "1", "2"]
