from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sdbatch.errors import FolderError
from sdbatch.plan.plan import HUGE_PLAN, SMALL_PLAN, shard_cells
from sdbatch.results import disk
from sdbatch.results.folder import FLAT_LIMIT, GROUP_SHARDS, LATER, SweepFolder
from sdbatch.results.stray import remove_strays
from sdbatch.run.batch import block_cells
from sdbatch.run.claim import claim_path

IMAGE_ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("cells", "shard", "path"),
    [
        (1, 7, f"images/{IMAGE_ID}.png"),
        (FLAT_LIMIT, 312, f"images/{IMAGE_ID}.png"),
        (FLAT_LIMIT + 1, 312, f"images/0000/000312/{IMAGE_ID}.png"),
        (100_000_000, 39_062, f"images/0078/039062/{IMAGE_ID}.png"),
    ],
)
def test_the_images_of_a_large_sweep_have_a_folder_for_each_shard(cells: int, shard: int, path: str) -> None:
    assert SweepFolder("x").image_path(IMAGE_ID, cells, shard) == path


@pytest.mark.parametrize("form", ["files", "tar"])
@pytest.mark.parametrize("cells", [FLAT_LIMIT, FLAT_LIMIT + 1, SMALL_PLAN, HUGE_PLAN, HUGE_PLAN + 1, 100_000_000])
def test_no_folder_of_a_sweep_has_ten_thousand_entries(cells: int, form: str) -> None:
    folder, each = SweepFolder("x"), shard_cells(cells)
    shards, blocks = -(-cells // each), -(-each // block_cells(cells, form))
    entries: Counter[Path] = Counter()
    for shard in range(min(shards, 2 * GROUP_SHARDS)):
        image = folder.path / folder.image_path(IMAGE_ID, cells, shard)
        entries[image.parent] += each if form == "files" else 0
        entries[folder.part(shard, 0, cells).parent] += blocks
        entries[folder.block(shard, 0, form, cells).parent] += blocks
        entries[claim_path(folder.claims, shard).parent] += 1
    assert max(entries.values()) < 10_000
    assert -(-shards // GROUP_SHARDS) < 10_000, "groups"


def test_parts_are_listed_by_number_and_the_next_block_is_free(folder: SweepFolder) -> None:
    for shard, block in ((2, 0), (0, 3), (0, 12), (1_000_000, 0), (0, 100_000)):
        folder.part(shard, block).touch()
    (folder.rows / ".tmp-x-1-1-1-part-000000-00013.parquet").touch()
    (folder.rows / "notes.parquet").touch()
    assert [folder.place(part) for part in folder.parts()] == [(0, 3), (0, 12), (0, 100_000), (2, 0), (1_000_000, 0)]
    assert (folder.next_block(0), folder.next_block(1), folder.next_block(2)) == (100_001, 0, 1)


def test_the_rows_of_a_large_sweep_have_a_folder_for_each_group_of_shards(folder: SweepFolder) -> None:
    parts = [folder.part(shard, block, FLAT_LIMIT + 1) for shard, block in ((2, 0), (2, 1), (499, 0), (500, 0))]
    assert [part.relative_to(folder.rows).as_posix() for part in (parts[0], parts[3])] == [
        "0000/part-000002-00000.parquet",
        "0001/part-000500-00000.parquet",
    ]
    for part in parts:
        part.parent.mkdir(exist_ok=True)
        part.touch()
    assert folder.parts() == parts
    merged = folder.merged_part(parts[0], parts[2], LATER)
    assert merged.name == "part-000002-to-000499-100000.parquet" and (folder.place(merged), folder.span(merged)) == ((2, LATER), (2, 499))
    merged.touch()
    assert folder.shard_parts(2) == [*parts[:2], merged] and folder.shard_parts(7) == [merged] and folder.shard_parts(500) == parts[3:]
    assert merged in folder.parts()


def test_create_takes_up_what_is_there(folder: SweepFolder) -> None:
    folder.write_about({"name": "study", "images": 3})
    folder.create()
    assert folder.read_about() == {"format": "sdbatch sweep", "name": "study", "images": 3}
    assert folder.is_sweep and not SweepFolder(folder.path / "nowhere").is_sweep


def test_create_goes_on_after_a_crash_between_its_steps(tmp_path: Path) -> None:
    (tmp_path / "s" / "images").mkdir(parents=True)
    (tmp_path / "s" / "log.txt").write_text("hello")
    (tmp_path / "s" / ".tmp-here-1-1-1-sweep.json").touch()
    folder = SweepFolder(tmp_path / "s")
    folder.create()
    assert folder.is_sweep and folder.rows.is_dir() and folder.log.read_text() == "hello"
    assert folder.read_about()["format"] == "sdbatch sweep"


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(FolderError, match=r"holds files that are not a sweep's \(thesis.doc, images/holiday.png\)"):
        SweepFolder(tmp_path).create()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="a file of that name is in the way"):
        SweepFolder(tmp_path / "file").create()
    with pytest.raises(FolderError, match="a file is in the way of a folder"):
        SweepFolder(tmp_path / "file" / "sweep").create()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}'])
def test_a_damaged_sweep_json_is_refused(folder: SweepFolder, text: str) -> None:
    folder.about.write_text(text)
    with pytest.raises(FolderError, match=r"sweep\.json"):
        folder.create()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.png", "images/../../x.png", "images\\x.png", "c:x.png"])
def test_a_row_cannot_lead_out_of_the_folder(folder: SweepFolder, path: str) -> None:
    with pytest.raises(FolderError, match="not inside the folder"):
        folder.file(path)


HOLD = """
import sys, time
from sdbatch.results.folder import SweepFolder
with SweepFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_told_who_holds_the_lock_and_a_dead_one_frees_it(folder: SweepFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout and driver.stdout.readline() == "held\n"
        driver.send_signal(signal.SIGSTOP)  # a stopped owner is not a dead one
        with pytest.raises(FolderError, match=rf"locked by \S+:{driver.pid} since \d{{4}}-"), folder.lock():
            pass
        driver.kill()
    with folder.lock():
        pass
    with folder.lock():
        pass


def test_strays_of_the_dead_are_removed_and_nothing_else(folder: SweepFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        dead = process.pid
    (folder.images / "ab").mkdir()
    alive = disk.write_temporary(folder.images / "alive.png", b"x")
    host = alive.name.split("-")[1]
    reused = folder.rows / f".tmp-{host}-{os.getpid()}-1-0-part.parquet"  # our number, but another process had it
    strays = [folder.images / "ab" / f".tmp-{host}-{dead}-{n}-0-x.png" for n in range(100)]
    elsewhere = folder.rows / f".tmp-elsewhere-{dead}-1-0-part.parquet"
    foreign = folder.rows / ".tmp-mine"
    for path in (*strays, elsewhere, foreign, reused):
        path.touch()
    assert remove_strays(folder) == 101
    assert alive.exists() and elsewhere.exists() and foreign.exists() and not reused.exists()
    assert not any(path.exists() for path in strays)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Nothing of it counts"),
        (errno.ESTALE, "network"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(number: int, words: str, tmp_path: Path) -> None:
    error = disk.folder_error("cannot write", tmp_path / "x", OSError(number, os.strerror(number)))
    assert words in str(error) and str(tmp_path / "x") in str(error)


def test_lack_of_inodes_is_not_called_lack_of_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    values = list(real)
    values[7] = 0  # f_favail

    def no_inodes(path: object) -> os.statvfs_result:
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", no_inodes)
    assert "no inodes" in str(disk.folder_error("cannot write", tmp_path / "x", OSError(errno.ENOSPC, "")))


def test_the_first_writer_wins_also_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "x"

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    for without_links in (False, True):
        if without_links:
            monkeypatch.setattr(os, "link", no_links)
        final.unlink(missing_ok=True)
        assert disk.publish(disk.write_temporary(final, b"first"), final)
        assert not disk.publish(disk.write_temporary(final, b"second"), final)
        assert final.read_bytes() == b"first" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_settled_first_stays(folder: SweepFolder) -> None:
    assert folder.read_settled("batch_size_sd1_64x64") is None
    assert folder.settle("batch_size_sd1_64x64", 8) == 8
    assert SweepFolder(folder.path).settle("batch_size_sd1_64x64", 4) == 8
    assert folder.read_settled("batch_size_sd1_64x64") == 8
    folder.create()
