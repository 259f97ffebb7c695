from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdbatch.errors import FolderError
from sdbatch.results import export
from sdbatch.results.export import MARKER, export_parquet, export_webdataset
from sdbatch.results.folder import SweepFolder
from sdbatch.results.writer import Failure
from tests.results.conftest import Fill
from tests.results.samples import RECIPE, make_cell, make_picture

PIXELS = {make_cell(seed).image_id: make_picture(seed).pixels for seed in range(6)}


def test_datasets_shows_the_images(fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = make_picture(9, recipe=RECIPE.__class__("sd1", "", RECIPE.checkpoint), strengths=(), controls=())
    folder = fill([[make_picture(0), Failure(make_cell(1), "no")], [plain, make_picture(2, fault="flat")]])
    done = export_parquet(folder, tmp_path / "out")
    assert done.images == 2 and done.shards == ("train-00000-of-00001.parquet",)
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert len(loaded) == 2 and type(loaded.features["image"]).__name__ == "Image"
    sample = loaded[0]
    assert (np.asarray(sample["image"]) == PIXELS[sample["image_id"]]).all()
    assert sample["prompt"] == "a red circle, badhands" and sample["loras"][0]["weight"] == 0.5
    assert loaded[1]["loras"] == [] and loaded[1]["vae"] is None


def test_datasets_opens_the_rows_as_they_are(sweep: SweepFolder, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(sweep.rows / "*.parquet"), cache_dir=str(tmp_path / "cache"), split="train")
    assert len(rows) == 6 and rows[0]["axes"][1] == {"key": "seed", "value": "0"}


def test_tars_hold_image_row_and_prompt_under_one_name(sweep: SweepFolder, tmp_path: Path) -> None:
    done = export_webdataset(sweep, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / done.shards[0]) as tar:
        members = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        assert {(member.mtime, member.uid, member.uname) for member in tar.getmembers()} == {(0, 0, "")}
        contents = {name: handle.read() for name, handle in members.items() if handle}
    assert len(contents) == 18
    for image_id, pixels in PIXELS.items():
        with Image.open(io.BytesIO(contents[f"{image_id}.png"])) as image:
            assert (np.asarray(image) == pixels).all()
        row = json.loads(contents[f"{image_id}.json"])
        assert row["image_id"] == image_id and row["made_at"].endswith("+00:00")
        assert contents[f"{image_id}.txt"].decode() == row["prompt"]


def test_shards_are_cut_by_size_and_hold_each_image_once(sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(path.stat().st_size for path in sweep.images.iterdir())
    monkeypatch.setattr(export, "MEGABYTE", 1)
    done = export_parquet(sweep, tmp_path / "out", shard_mb=2 * size)
    assert done.shards == tuple(f"train-{number:05d}-of-00003.parquet" for number in range(3))
    ids = [name for shard in done.shards for name in pq.read_table(tmp_path / "out" / shard)["image_id"].to_pylist()]
    assert sorted(ids) == sorted(PIXELS)


def test_very_many_shards_lie_in_folders(sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in (("MEGABYTE", 1), ("FLAT_LIMIT", 2), ("FOLDER_SHARDS", 2)):
        monkeypatch.setattr(export, name, value)
    size = max(path.stat().st_size for path in sweep.images.iterdir())
    out = sweep.path / "export"
    done = export_parquet(sweep, out, shard_mb=2 * size)
    assert done.shards == tuple(f"{number // 2:04d}/train-{number:05d}-of-00003.parquet" for number in range(3))
    loaded = datasets.load_dataset("parquet", data_dir=str(out), cache_dir=str(tmp_path / "cache"), split="train")
    assert sorted(loaded["image_id"]) == sorted(PIXELS)
    assert export_parquet(sweep, out, shard_mb=2 * size) == done
    assert len(export_parquet(sweep, out, shard_mb=size).shards) > 3, "its own is replaced"
    (out / "0000/notes.txt").touch()
    with pytest.raises(FolderError, match="holds another export"):
        export_parquet(sweep, out, shard_mb=2 * size)


def test_a_killed_export_goes_on_and_ends_the_same(sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MEGABYTE", 1)
    size = max(path.stat().st_size for path in sweep.images.iterdir())
    whole = export_webdataset(sweep, tmp_path / "whole", shard_mb=2 * size)
    written: list[str] = []
    real = export.replace

    def dies(temporary: Path, final: Path) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(final.name)
        real(temporary, final)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export, "replace", dies)
        export_webdataset(sweep, tmp_path / "out", shard_mb=2 * size)
    assert not (tmp_path / "out").exists()
    assert export_webdataset(sweep, tmp_path / "out", shard_mb=2 * size).shards == whole.shards
    for name in (*whole.shards, MARKER):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sweep", "whole"]


def test_an_export_is_made_once_and_never_over_something_else(sweep: SweepFolder, tmp_path: Path) -> None:
    done = export_parquet(sweep, tmp_path / "out")
    stamp = (tmp_path / "out" / done.shards[0]).stat().st_mtime_ns
    assert export_parquet(sweep, tmp_path / "out") == done
    assert (tmp_path / "out" / done.shards[0]).stat().st_mtime_ns == stamp
    with pytest.raises(FolderError, match="holds another export"):
        export_webdataset(sweep, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(FolderError, match="holds other files"):
        export_parquet(sweep, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert export_parquet(sweep, tmp_path / "empty").images == 6


def test_a_grown_sweep_replaces_its_own_export_unless_a_user_added_to_it(fill: Fill, tmp_path: Path) -> None:
    folder = fill([[make_picture(0)]])
    inside, outside = folder.path / "export", tmp_path / "elsewhere"
    for out in (inside, outside):
        assert export_parquet(folder, out).images == 1
    fill([[make_picture(1)]])
    assert export_parquet(folder, inside).images == 2
    assert pq.read_table(inside / "train-00000-of-00001.parquet").num_rows == 2
    assert not list(folder.path.glob(".tmp-*"))
    with pytest.raises(FolderError, match="holds another export"):
        export_parquet(folder, outside)
    (inside / "notes.txt").touch()
    fill([[make_picture(2)]])
    with pytest.raises(FolderError, match="holds another export"):
        export_parquet(folder, inside)


def test_a_damaged_image_is_not_exported(sweep: SweepFolder, tmp_path: Path) -> None:
    image = next(sweep.images.iterdir())
    data = bytearray(image.read_bytes())
    data[-30] ^= 1
    image.write_bytes(data)
    with pytest.raises(FolderError, match=r"not the image its row says\. Run `sdbatch verify`"):
        export_parquet(sweep, tmp_path / "out")
    image.unlink()
    with pytest.raises(FolderError, match="cannot be read"):
        export_webdataset(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_sweep_has_nothing_to_export(folder: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no finished image"):
        export_parquet(folder, tmp_path / "out")
