from __future__ import annotations

import logging
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdbatch.errors import FolderError
from sdbatch.results.commit import part_bytes, publish_rows
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.reader import committed, damage_of, iter_rows, load_rows, read_index
from sdbatch.results.row import failed_row
from sdbatch.results.schema import SCHEMA
from sdbatch.results.upkeep import drop_rows, merge_parts, recover
from sdbatch.results.verify import verify
from sdbatch.results.writer import Failure
from tests.results.conftest import Fill
from tests.results.samples import ORIGIN, make_cell, make_picture

IDS = [make_cell(seed).image_id for seed in range(6)]


def test_a_damaged_part_is_named_and_hides_no_other(sweep: SweepFolder, caplog: pytest.LogCaptureFixture) -> None:
    whole = sweep.part(0, 1).read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"x" * 100):
        sweep.part(0, 1).write_bytes(damaged)
        state = committed(sweep)
        assert state.done == {*IDS[:2], *IDS[4:]} and list(state.unreadable) == [sweep.part(0, 1)]
        assert list(verify(sweep).unreadable) == [sweep.part(0, 1)]
    with caplog.at_level(logging.WARNING):
        assert load_rows(sweep).num_rows == 4
    assert "part-000000-00001.parquet" in caplog.text
    assert not recover(sweep).done & set(IDS[2:4])
    assert (sweep.damaged / "rows/part-000000-00001.parquet").exists() and not committed(sweep).unreadable


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_part_is_noticed(sweep: SweepFolder, place: float, bit: int) -> None:
    part = sweep.part(0, 1)
    whole = part.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    part.write_bytes(broken)
    try:
        assert damage_of(part) is not None
    finally:
        part.write_bytes(whole)


def test_an_image_that_is_gone_or_cut_short_is_lost(sweep: SweepFolder) -> None:
    (sweep.images / f"{IDS[0]}.png").unlink()
    with (sweep.images / f"{IDS[3]}.png").open("r+b") as handle:
        handle.truncate(100)
    (sweep.images / f"{IDS[5]}.png").write_bytes(b"")
    state = committed(sweep)
    assert set(texts_of(state.ids[state.gone])) == {IDS[0], IDS[3], IDS[5]} and state.done == {IDS[1], IDS[2], IDS[4]}
    assert recover(sweep).done == state.done
    assert not committed(sweep).lost and load_rows(sweep).num_rows == 3


def test_what_is_lost_is_told_of_the_rows_that_count(fill: Fill) -> None:
    folder = fill([[Failure(make_cell(0), "late")], [make_picture(0)], [make_picture(1)], [Failure(make_cell(1), "again")]])
    (folder.images / f"{IDS[1]}.png").unlink()
    state = committed(folder)
    assert {texts_of(state.ids)[row]: path for row, path in state.lost.items()} == {IDS[1]: f"images/{IDS[1]}.png"}
    assert state.done == {IDS[0]} and not state.faulty


def test_rows_of_one_image_count_once_a_success_before_a_fault(fill: Fill) -> None:
    folder = fill([[make_picture(0)], [Failure(make_cell(0), "late")], [Failure(make_cell(1), "early")], [make_picture(1)]])
    table = load_rows(folder, ["image_id", "status", "error"])
    assert dict(zip(table["image_id"].to_pylist(), table["status"].to_pylist(), strict=True)) == {IDS[0]: "ok", IDS[1]: "ok"}
    assert committed(folder).done == {IDS[0], IDS[1]}


def test_of_equal_rows_the_later_counts(folder: SweepFolder) -> None:
    for block, error in enumerate(("first", "second")):
        publish_rows(folder, (0, block), [failed_row(make_cell(0), error, ORIGIN)])
    assert load_rows(folder)["error"].to_pylist() == ["second"]


def test_dropped_rows_are_gone_for_every_reader(sweep: SweepFolder) -> None:
    assert drop_rows(sweep, [IDS[0], IDS[2], IDS[3], "f" * 32]) == 3
    assert sorted(load_rows(sweep)["image_id"].to_pylist()) == sorted([IDS[1], IDS[4], IDS[5]])
    assert committed(sweep).done == {IDS[1], IDS[4], IDS[5]}
    assert drop_rows(sweep, [IDS[0]]) == 0 and drop_rows(sweep, []) == 0


def test_recover_retries_faults_only_when_asked(fill: Fill) -> None:
    folder = fill([[make_picture(0), Failure(make_cell(1), "no")]])
    assert recover(folder).faulty == {IDS[1]}
    assert recover(folder, retry_faulty=True).faulty == set() and load_rows(folder).num_rows == 1


def test_merged_parts_hold_the_same_rows(sweep: SweepFolder) -> None:
    before = load_rows(sweep).sort_by("image_id")
    assert merge_parts(sweep, {1}) == 0
    assert merge_parts(sweep) == 3
    assert [part.name for part in sweep.parts()] == ["part-000000-100001.parquet"]
    assert load_rows(sweep).sort_by("image_id").equals(before) and merge_parts(sweep) == 0


def test_parts_of_neighbouring_shards_become_one_that_each_of_them_finds(sweep: SweepFolder) -> None:
    for seed in (6, 7):
        publish_rows(sweep, (4, seed), [failed_row(make_cell(seed), "no", ORIGIN)])
    publish_rows(sweep, (5, 0), [failed_row(make_cell(8), "no", ORIGIN)])
    publish_rows(sweep, (6, 0), [failed_row(make_cell(9), "no", ORIGIN)])
    assert merge_parts(sweep, {0, 4, 5}) == 6
    merged, alone = sweep.parts()
    assert merged.name == "part-000000-to-000005-100001.parquet" and load_rows(sweep).num_rows == 10
    assert all(sweep.shard_parts(shard) == [merged] for shard in (0, 4, 5)) and sweep.shard_parts(6) == [alone]
    publish_rows(sweep, (4, 6), [failed_row(make_cell(6), "again", ORIGIN)])
    assert load_rows(sweep).num_rows == 10 and merge_parts(sweep, {4}) == 0, "one part is left as it is"


def test_a_part_of_an_earlier_version_lacks_a_column(sweep: SweepFolder) -> None:
    table = load_rows(sweep).drop_columns(["threads"])
    sweep.part(7, 0).write_bytes(part_bytes(table.set_column(0, "image_id", pa.array([f"{n:032x}" for n in range(6)]))))
    assert load_rows(sweep, ["threads"])["threads"].null_count == 6 and load_rows(sweep).num_rows == 12


def test_a_wrong_column_is_named(sweep: SweepFolder) -> None:
    with pytest.raises(FolderError, match=r"promt: no such column.*prompt"):
        load_rows(sweep, ["promt"])
    assert load_rows(SweepFolder(sweep.path / "nowhere")).num_rows == 0


def test_two_hundred_thousand_rows_are_read_in_little_time_and_memory(folder: SweepFolder) -> None:
    count = 20_000
    empty = {field.name: pa.nulls(count, field.type) for field in SCHEMA}
    for block in range(10):
        ids = pa.array([f"{number:032x}" for number in range(block * count, (block + 1) * count)])
        columns = empty | {"image_id": ids, "status": pa.array(np.full(count, "failed")), "prompt": pa.array(["x" * 500] * count)}
        folder.part(0, block).write_bytes(part_bytes(pa.table(columns, schema=SCHEMA)))
    start = time.process_time()
    state = committed(folder)
    tables = iter_rows(folder, ["image_id", "prompt"])
    before = pa.total_allocated_bytes()
    peak = 0
    rows = 0
    for table in tables:
        rows += table.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert len(state.faulty) == rows == 10 * count
    assert peak < 60e6, f"{peak / 1e6:.0f} MB held; all prompts are 100 MB"
    assert time.process_time() - start < 10


@pytest.mark.parametrize("look", [False, True])
def test_an_index_takes_few_bytes_a_row_and_no_row_is_read(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, look: bool) -> None:
    """So a sweep of a hundred million images is looked at, resumed and tracked in a few gigabytes."""
    parts, count = 400, 250
    for number in range(parts):
        ids = pa.array([f"{number * count + row:032x}" for row in range(count)])
        images = pa.array([f"blocks/{number:06d}-00000.tar/{image_id}.png" for image_id in ids.to_pylist()])
        table = pa.table({"image_id": ids, "status": pa.array(["ok"] * count), "image": images})
        folder.part(number, 0).write_bytes(part_bytes(table))
    monkeypatch.setattr("sdbatch.results.reader.read_part", None)
    monkeypatch.setattr("sdbatch.results.presence.size_if_whole", lambda path: 1)  # pyright: ignore[reportUnknownLambdaType]
    tracemalloc.start()
    try:
        index = read_index(folder, look=look)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index) == parts * count and not index.lost
    assert peak_bytes / len(index) < 100, f"{peak_bytes / len(index):.0f} bytes a row"
