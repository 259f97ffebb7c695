"""Larger files, and nothing else changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sdbatch.errors import FolderError
from sdbatch.results import compact as module
from sdbatch.results.block import PACKINGS, ImageReader
from sdbatch.results.compact import compact
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.stray import remove_strays
from sdbatch.results.verify import verify
from sdbatch.results.writer import BlockWriter, Failure, Output
from tests.results.samples import ORIGIN, make_cell, make_picture

FORMATS = ["files", *PACKINGS]


def fill(folder: SweepFolder, form: str, blocks: int = 6) -> None:
    with BlockWriter(folder, ORIGIN, Output(20_000, form)) as writer:
        for block in range(blocks):
            seed = 3 * block
            writer.put((block // 2, block % 2), [make_picture(seed), make_picture(seed + 1), Failure(make_cell(seed + 2), "no")])


def content(folder: SweepFolder) -> list[dict[str, object]]:
    """Rows without where their images are, and the images' hashes."""
    reader = ImageReader(folder)
    rows = load_rows(folder).sort_by("image_id").to_pylist()
    for row in rows:
        row["found"] = row["image"] and hashlib.sha256(reader.read(row)).hexdigest()
        row["image"], row["image_offset"] = row["image"] is not None, None
    return rows


def files(folder: SweepFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in [*folder.parts(), *folder.block_files()]}


@pytest.mark.parametrize("form", FORMATS)
def test_compacting_keeps_everything_and_repeats_to_nothing(folder: SweepFolder, form: str) -> None:
    fill(folder, form)
    before = content(folder)
    told = str(compact(folder))
    assert told.startswith("6 parts of rows are 1 now") and (form == "files" or told.endswith("6 blocks of images are 1"))
    assert content(folder) == before and all(row["found"] == row["image_sha256"] for row in before)
    report = verify(folder, full=True)
    assert report.is_sound and report.checked == 12 and not report.orphans and not report.foreign
    assert folder.shard_parts(1) == folder.parts()
    after = files(folder)
    compact(folder)
    assert files(folder) == after


@pytest.mark.parametrize("form", list(PACKINGS))
def test_blocks_stay_below_their_size(folder: SweepFolder, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEGABYTE", 1000)
    fill(folder, form)
    before = content(folder)
    largest = max(load_rows(folder)["image_bytes"].drop_null().to_pylist()) // 1000 + 1
    compact(folder, block_mb=2 * largest)
    assert len(folder.block_files()) == 6 and len(folder.parts()) == 1, "two fit into one, as before"
    compact(folder, block_mb=4 * largest)
    assert len(folder.block_files()) == 3 and content(folder) == before
    assert verify(folder, full=True).is_sound


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("step", ["publish", "supersede", "_remove"])
def test_killed_at_any_step_it_ends_the_same_the_next_time(
    folder: SweepFolder, form: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    fill(folder, form)
    before = content(folder)
    real = getattr(module, step)
    for when in ("before", "after"):

        def dies(*arguments: object, when: str = when) -> None:
            if step == "_remove" and not arguments[0]:
                return
            if when == "after":
                real(*arguments)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module, step, dies)
            try:
                compact(folder)
            except Killed:
                assert content(folder) == before
    remove_strays(folder)
    compact(folder)
    assert content(folder) == before and len(folder.parts()) == 1 and verify(folder, full=True).is_sound
    assert len(folder.block_files()) == (0 if form == "files" else 1)


def test_an_image_that_is_not_what_was_committed_is_not_packed_anew(folder: SweepFolder) -> None:
    fill(folder, "webdataset")
    path = folder.block_files()[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 4
    path.write_bytes(bytes(data))
    before = files(folder)
    with pytest.raises(FolderError, match="not the image its row says"):
        compact(folder)
    assert {path: data for path, data in files(folder).items() if path in before} == before
    folder.parts()[0].write_bytes(b"x")
    with pytest.raises(FolderError, match="cannot be read"):
        compact(folder)


def test_a_compacted_sweep_goes_on(folder: SweepFolder) -> None:
    fill(folder, "webdataset", blocks=3)
    compact(folder)
    done = committed(folder).done
    fill(folder, "webdataset")
    assert len(committed(folder).done) == 12 and done <= committed(folder).done
    compact(folder)
    assert len(folder.block_files()) == 1 and load_rows(folder).num_rows == 18
