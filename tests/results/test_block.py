"""Images packed in blocks by those who make them: whole, once, and readable as the dataset they are."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdbatch.results import commit
from sdbatch.results.block import PACKINGS, ImageReader, container_of, pack
from sdbatch.results.export import export_webdataset
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.row import Origin
from sdbatch.results.upkeep import recover
from sdbatch.results.verify import repair, verify
from sdbatch.results.writer import BlockWriter, Failure, Outcome, Output, record
from tests.results.samples import ORIGIN, make_cell, make_picture

LARGE = 20_000
IDS = [make_cell(seed).image_id for seed in range(4)]


@pytest.fixture(params=list(PACKINGS))
def packed(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(folder: SweepFolder, form: str, outcomes: Sequence[Outcome], worker: str = "a", block: int = 0) -> None:
    with BlockWriter(folder, Origin("study", worker, "here"), Output(LARGE, form)) as writer:
        writer.put((3, block), outcomes)


def pictures(*seeds: int) -> list[Outcome]:
    return [make_picture(seed) for seed in seeds]


def names(folder: SweepFolder) -> list[str]:
    return sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file() and path.suffix != ".json")


def test_a_block_and_its_rows_are_all_that_is_written(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, pictures(0, 1, 2, 3))
    suffix = PACKINGS[packed].suffix
    assert names(folder) == [f"blocks/0000/000003-00000.{suffix}", "rows/0000/part-000003-00000.parquet"]
    assert committed(folder).done == set(IDS)
    reader = ImageReader(folder)
    for row in load_rows(folder).to_pylist():
        assert container_of(row["image"]) == (f"blocks/0000/000003-00000.{suffix}", f"{row['image_id']}.png")
        data = reader.read(row)
        assert hashlib.sha256(data).hexdigest() == row["image_sha256"] and len(data) == row["image_bytes"]
    report = verify(folder, full=True)
    assert report.is_sound and report.checked == 4 and not report.orphans and not report.foreign


def test_any_reader_of_datasets_opens_a_block(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, pictures(0, 1))
    path = folder.block_files()[0]
    if packed == "webdataset":
        with tarfile.open(path) as tar:
            assert tar.getnames() == [f"{image_id}.{suffix}" for image_id in IDS[:2] for suffix in ("png", "json", "txt")]
    else:
        table = pq.read_table(path)
        assert [item["path"] for item in table["image"].to_pylist()] == [f"{image_id}.png" for image_id in IDS[:2]]
        assert b"huggingface" in (table.schema.metadata or {})


def test_who_makes_a_block_again_changes_nothing(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, pictures(0, 1))
    before = {path: path.read_bytes() for path in [*folder.parts(), *folder.block_files()]}
    make(folder, packed, pictures(0, 1), worker="b")
    assert {path: path.read_bytes() for path in [*folder.parts(), *folder.block_files()]} == before


def test_who_died_between_block_and_rows_has_made_them_nevertheless(
    folder: SweepFolder, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(commit, "publish_rows", dies)
        make(folder, packed, pictures(0, 1), worker="first")
    assert not committed(folder).done and len(folder.block_files()) == 1
    make(folder, packed, pictures(0, 1), worker="second")
    assert len(folder.block_files()) == 1, "first writer wins"
    assert load_rows(folder, ["worker"])["worker"].to_pylist() == ["first", "first"]
    assert verify(folder, full=True).is_sound


def test_the_rest_of_a_block_that_was_stopped_lies_beside_it(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, pictures(0, 1))
    make(folder, packed, pictures(2, 3))
    assert [folder.place(path) for path in folder.block_files()] == [(3, 0), (3, LATER)]
    make(folder, packed, pictures(1, 2))
    assert len(folder.block_files()) == 2 and load_rows(folder).num_rows == 4
    assert committed(folder).done == set(IDS) and verify(folder, full=True).is_sound


def test_a_dataset_holds_successes_only(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, [make_picture(0), make_picture(1, fault="flat"), make_picture(2, fault="nan"), Failure(make_cell(3), "no")])
    rows = {row["image_id"]: row["image"] for row in load_rows(folder).to_pylist()}
    assert rows[IDS[0]].startswith("blocks/") and rows[IDS[1]] == f"images/0000/000003/{IDS[1]}.png"
    assert rows[IDS[2]] is None and rows[IDS[3]] is None
    assert verify(folder, full=True).is_sound
    make(folder, packed, [Failure(make_cell(3), "no")], block=1)
    assert len(folder.block_files()) == 1, "a block without a success is none"


@pytest.mark.parametrize("harm", ["gone", "cut", "empty"])
def test_a_block_that_is_not_whole_is_made_again_and_only_that(folder: SweepFolder, packed: str, harm: str) -> None:
    make(folder, packed, pictures(0, 1))
    make(folder, packed, pictures(2, 3), block=1)
    before = {path: path.read_bytes() for path in folder.block_files()}
    victim = folder.block_files()[0]
    victim.unlink()
    if harm != "gone":
        victim.write_bytes(before[victim][: 700 if harm == "cut" else 0])
    state = committed(folder)
    assert set(texts_of(state.ids[state.gone])) == set(IDS[:2]) and not verify(folder).is_sound
    assert recover(folder).done == set(IDS[2:])
    make(folder, packed, pictures(0, 1))
    assert committed(folder).done == set(IDS) and verify(folder, full=True).is_sound
    assert folder.block_files() == list(before)


def test_a_flipped_bit_of_an_image_takes_its_block_back(folder: SweepFolder, packed: str) -> None:
    make(folder, packed, pictures(0, 1))
    make(folder, packed, pictures(2), block=1)
    path = folder.block_files()[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 4
    path.write_bytes(bytes(data))
    report = verify(folder, full=True)
    assert report.corrupt and not report.is_sound
    assert repair(folder, report) == 2
    assert committed(folder).done == {IDS[2]} and verify(folder, full=True).is_sound and len(folder.block_files()) == 1


def test_a_packed_sweep_is_exported_like_any_other(folder: SweepFolder, packed: str, tmp_path: Path) -> None:
    make(folder, packed, pictures(0, 1, 2))
    export = export_webdataset(folder, tmp_path / "export")
    with tarfile.open(export.path / export.shards[0]) as tar:
        assert len(tar.getnames()) == 9


def test_equal_samples_make_equal_blocks(folder: SweepFolder, packed: str) -> None:
    rows, images = record(folder, ORIGIN, [make_picture(0), make_picture(1)], LARGE, 1, 3)
    by_id = {row["image_id"]: images[row["image"]] for row in rows}
    first, again = (pack(PACKINGS[packed], "blocks/x", rows, by_id) for _ in range(2))
    assert first == again
