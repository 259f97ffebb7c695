from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdbatch.errors import FolderError
from sdbatch.results import commit
from sdbatch.results.commit import commit_block
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.row import Row
from sdbatch.results.verify import verify
from sdbatch.results.writer import BlockWriter, Failure, Output, record
from tests.results.samples import ORIGIN, make_cell, make_picture


def names(folder: SweepFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


def test_blocks_are_committed_in_order_with_their_images(folder: SweepFolder) -> None:
    seen: list[list[Row]] = []
    with BlockWriter(folder, ORIGIN, Output(20_000), on_commit=seen.append) as writer:
        writer.put((3, 0), [make_picture(0), make_picture(1, fault="flat")])
        writer.put((3, 1), [make_picture(2, fault="nan"), Failure(make_cell(3), "out of memory")], attempts=3)
    first, second = make_cell(0).image_id, make_cell(1).image_id
    images = {f"images/0000/000003/{name}.png" for name in (first, second)}
    parts = {f"rows/0000/part-000003-{block:05d}.parquet" for block in (0, 1)}
    assert names(folder) == images | parts | {"sweep.json"}
    assert [[row["status"] for row in rows] for rows in seen] == [["ok", "flat"], ["nan", "failed"]]
    state = committed(folder)
    assert state.done == {first} and len(state.faulty) == 3 and not state.lost
    assert load_rows(folder, ["attempts"])["attempts"].to_pylist() == [1, 1, 3, 3]
    assert verify(folder, full=True).is_sound


def test_batches_of_a_block_are_committed_together(folder: SweepFolder) -> None:
    seen: list[int] = []
    with BlockWriter(folder, ORIGIN, Output(10), on_commit=lambda rows: seen.append(len(rows))) as writer:
        writer.put((0, 0), [make_picture(0)], is_last=False)
        writer.put((0, 1), [make_picture(3)], is_last=False)
        writer.put((0, 0), [make_picture(1), make_picture(2)])
        writer.flush()
    assert seen == [3, 1], "the one that was not complete by the flush"
    assert [folder.place(part) for part in folder.parts()] == [(0, 0), (0, 1)] and len(committed(folder).done) == 4


def test_what_is_made_later_of_a_block_is_committed_beside_it(folder: SweepFolder) -> None:
    for seed in (0, 1):
        with BlockWriter(folder, ORIGIN, Output(10)) as writer:
            writer.put((0, 0), [make_picture(seed)])
    assert [folder.place(part) for part in folder.parts()] == [(0, 0), (0, LATER)]


def test_an_error_stops_the_writer_and_every_later_call_says_so(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def full(*_: object) -> None:
        calls.append(1)
        raise FolderError("disk full")

    monkeypatch.setattr("sdbatch.results.writer.commit_block", full)
    writer = BlockWriter(folder, ORIGIN, Output(10), depth=1)
    writer.put((0, 0), [make_picture(0)])
    for _ in range(2):
        with pytest.raises(FolderError, match="disk full"):
            writer.flush()
        with pytest.raises(FolderError, match="disk full"):
            writer.put((0, 0), [make_picture(1)])
    with pytest.raises(FolderError, match="disk full"):
        writer.close()
    assert calls == [1] and not len(committed(folder))


def test_an_error_of_the_caller_keeps_what_was_put_and_is_not_masked(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), BlockWriter(folder, ORIGIN, Output(10)) as writer:
        writer.put((0, 0), [make_picture(0)])
        raise KeyboardInterrupt
    assert committed(folder).done == {make_cell(0).image_id}

    def full(*_: object) -> None:
        raise FolderError("disk full")

    monkeypatch.setattr("sdbatch.results.writer.commit_block", full)
    with pytest.raises(ValueError, match="mine") as caught, BlockWriter(folder, ORIGIN, Output(10)) as writer:
        writer.put((0, 0), [make_picture(1)])
        raise ValueError("mine")
    assert caught.value.__notes__ == ["The writer also failed: disk full"]


def test_the_queue_is_bounded(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*_: object) -> None:
        gate.wait(10)

    monkeypatch.setattr("sdbatch.results.writer.commit_block", slow)
    with BlockWriter(folder, ORIGIN, Output(10), depth=1) as writer:
        writer.put((0, 0), [make_picture(0)])
        blocked = threading.Thread(target=lambda: [writer.put((0, 0), [make_picture(seed)]) for seed in (1, 2)])
        blocked.start()
        blocked.join(0.1)
        assert blocked.is_alive()
        gate.set()
        blocked.join(10)
        assert not blocked.is_alive()


def test_a_part_that_is_there_is_left_alone_and_no_row_is_lost(folder: SweepFolder) -> None:
    """Two workers on one shard, as after a false alarm of a supervisor: both end with their rows committed."""
    rows, images = record(folder, ORIGIN, [make_picture(0), make_picture(1)], 10)
    commit_block(folder, (0, 0), rows, images)
    before = folder.part(0, 0).read_bytes()
    commit_block(folder, (0, 0), rows, images)
    assert len(folder.parts()) == 1
    more, pictures = record(folder, ORIGIN, [make_picture(1), make_picture(2)], 10)
    commit_block(folder, (0, 0), more, pictures)
    assert folder.part(0, 0).read_bytes() == before
    assert [folder.place(part) for part in folder.parts()] == [(0, 0), (0, LATER)]
    assert sorted(load_rows(folder)["image_id"].to_pylist()) == sorted(make_cell(seed).image_id for seed in range(3))


def test_a_damaged_part_in_the_way_commits_nothing(folder: SweepFolder) -> None:
    folder.part(0, 0).write_bytes(b"")
    rows, images = record(folder, ORIGIN, [make_picture(0)], 10)
    commit_block(folder, (0, 0), rows, images)
    assert committed(folder).done == {make_cell(0).image_id} and folder.part(0, LATER).exists()


def test_nothing_is_committed_when_an_image_cannot_be_written(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = commit.write_temporary

    def fails(final: Path, data: bytes) -> Path:
        if final.name.startswith(make_cell(1).image_id):
            raise FolderError("disk full")
        return real(final, data)

    monkeypatch.setattr(commit, "write_temporary", fails)
    rows, images = record(folder, ORIGIN, [make_picture(0), make_picture(1)], 10)
    with pytest.raises(FolderError):
        commit_block(folder, (0, 0), rows, images)
    assert not len(committed(folder)) and not folder.parts()


def test_neither_writing_nor_reading_imports_pandas(tmp_path: Path) -> None:
    """It costs half a second of CPU in every worker and in every verb that only looks."""
    code = """
import sys
from sdbatch.results.commit import commit_block
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.upkeep import drop_rows, merge_parts
from sdbatch.results.verify import verify
from sdbatch.results.writer import BlockWriter, Output, record
from tests.results.samples import ORIGIN, make_picture
folder = SweepFolder(sys.argv[1])
folder.create()
for block in (0, 1, 2):
    commit_block(folder, (0, block), *record(folder, ORIGIN, [make_picture(block), make_picture(9)], 10))
assert load_rows(folder).num_rows == len(committed(folder).done) == 4
with BlockWriter(folder, ORIGIN, Output(10, "parquet")) as writer:
    writer.put((1, 0), [make_picture(5)])
with BlockWriter(folder, ORIGIN, Output(10, "webdataset")) as writer:
    writer.put((2, 0), [make_picture(6)])
assert merge_parts(folder) and verify(folder, full=True).is_sound and drop_rows(folder, committed(folder).done)
assert not {"pandas", "torch", "omegaconf"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_images_that_were_made_before_are_committed_with_the_rest_of_their_block(form: str, folder: SweepFolder) -> None:
    room = 20_000
    rows, images = record(folder, ORIGIN, [make_picture(0)], room, shard=9)  # of a plan in which they had another place
    with BlockWriter(folder, ORIGIN, Output(room, form)) as writer:
        writer.restore((3, 0), [(row, images[row["image"]]) for row in rows])
        writer.put((3, 0), [make_picture(1)])
    assert committed(folder).done == {make_cell(seed).image_id for seed in (0, 1)}
    assert len(folder.parts()) == 1
    assert verify(folder, full=True).is_sound
