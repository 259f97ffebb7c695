"""What a killed worker had made of a block is found by the next one, whole, wherever that runs if it sees the same folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import table_of
from sdbatch.results.spool import Spool
from sdbatch.results.writer import Failure, record
from tests.results.samples import ORIGIN, make_cell, make_picture

ROOM = 20_000
IDS = [make_cell(seed).image_id for seed in range(3)]


def files(temporary: Path) -> list[Path]:
    return [path for path in temporary.glob("sdbatch-*/**/*") if path.is_file()]


@pytest.fixture
def spool(folder: SweepFolder, tmp_path: Path) -> Spool:
    """One batch of three, of which one failed, kept for a block."""
    spool = Spool(folder, tmp_path)
    outcomes = [make_picture(0), Failure(make_cell(1), "no"), make_picture(2)]
    spool.keep((3, 7), *record(folder, ORIGIN, outcomes, ROOM, shard=3))
    return spool


@pytest.mark.usefixtures("spool")
def test_what_was_good_is_found_with_rows_as_they_were(folder: SweepFolder, tmp_path: Path) -> None:
    rows, images = record(folder, ORIGIN, [make_picture(0), make_picture(2)], ROOM, shard=3)
    found = list(Spool(folder, tmp_path).take(3, IDS))
    assert [data for _, data in found] == list(images.values())
    now = table_of(rows)["made_at"]
    again = table_of([row for row, _ in found])
    assert again.set_column(again.column_names.index("made_at"), "made_at", now).equals(table_of(rows))
    assert [row["image_id"] for row, _ in Spool(folder, tmp_path).take(3, IDS[2:])] == [IDS[2]]
    assert not list(Spool(folder, tmp_path).take(4, IDS))


def test_the_committed_is_dropped_whoever_kept_it(spool: Spool, folder: SweepFolder, tmp_path: Path) -> None:
    spool.keep((3, 70), *record(folder, ORIGIN, [make_picture(0)], ROOM))
    Spool(folder, tmp_path).drop((3, 8))
    assert len(files(tmp_path)) == 2
    Spool(folder, tmp_path).drop((3, 7))
    assert [path.name for path in files(tmp_path)] == [f"70-{IDS[0]}.tar"]
    spool.drop((3, 70))
    assert not list(tmp_path.glob("sdbatch-*/*/*"))


@pytest.mark.usefixtures("spool")
def test_another_sweep_finds_nothing_and_what_is_damaged_is_made_again(folder: SweepFolder, tmp_path: Path) -> None:
    assert not list(Spool(SweepFolder(tmp_path / "other"), tmp_path).take(3, IDS))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert [row["image_id"] for row, _ in Spool(folder, tmp_path).take(3, IDS)] == [IDS[2]]
    path.write_bytes(data[:600])
    assert not list(Spool(folder, tmp_path).take(3, IDS))


def test_the_end_of_a_sweep_leaves_nothing(spool: Spool, tmp_path: Path) -> None:
    spool.clear()
    assert not list(tmp_path.glob("sdbatch-*/*"))


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_that_others_may_write_to_is_not_used(
    is_link: bool, folder: SweepFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trap = tmp_path / f"sdbatch-{os.getuid()}"
    if is_link:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        trap.symlink_to(tmp_path / "elsewhere")
    else:
        trap.mkdir()
        trap.chmod(0o777)
    Spool(folder, tmp_path).keep((0, 0), *record(folder, ORIGIN, [make_picture(0)], ROOM))
    assert not files(tmp_path) and "others may write there" in caplog.text


def test_a_disk_without_room_is_told_and_nothing_else(folder: SweepFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(folder, tmp_path)
    (tmp_path / f"sdbatch-{os.getuid()}").rmdir()
    (tmp_path / f"sdbatch-{os.getuid()}").write_text("in the way")
    for _ in range(2):
        spool.keep((0, 0), *record(folder, ORIGIN, [make_picture(0)], ROOM))
    assert len(caplog.records) == 1 and "is not kept" in caplog.text
