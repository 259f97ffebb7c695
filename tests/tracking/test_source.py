from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdbatch.errors import FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.tracking.cursor import CURSOR
from sdbatch.tracking.project import project
from sdbatch.tracking.source import read_folder, read_runs
from sdbatch.tracking.target import Target, TrackingError
from tests.tracking.conftest import SweepMaker


def test_a_folder_is_a_source(make_sweep: SweepMaker) -> None:
    folder = make_sweep("strengths")
    with read_folder(folder) as source:
        assert (source.title, source.folders, source.table.num_rows) == ("strengths", (folder,), 12)
        row = source.table.slice(0, 1).to_pylist()[0]
        assert source.path(row["image_id"], row["image"]) == folder / row["image"]
        assert source.path("0" * 32, row["image"]) is None
        assert source.path(row["image_id"], "images/gone.png") is None


def test_a_row_does_not_lead_out_of_its_folder(make_sweep: SweepMaker, tmp_path: Path) -> None:
    folder = make_sweep()
    (tmp_path / "outputs" / "secret.png").write_bytes(b"x")
    with read_folder(folder) as source:
        image_id = source.table["image_id"][0].as_py()
        assert source.path(image_id, "../secret.png") is None
        assert source.path(image_id, str(tmp_path / "outputs" / "secret.png")) is None


def test_latest_and_by_name(make_sweep: SweepMaker, target: Target) -> None:
    for name in ("older", "newer"):
        project(make_sweep(name), target)
    with read_runs(target) as source:
        assert source.title == "newer"
        assert len(source.run_ids) == 1
    with read_runs(target, "older") as source:
        assert source.title == "older"
        assert source.folders[0].name == "older"


def test_a_filter_on_parameters_gives_the_rows_of_those_groups(make_sweep: SweepMaker, target: Target) -> None:
    project(make_sweep("one"), target)
    project(make_sweep("two", weights=(0.5, 2.0)), target)
    with read_runs(target, "params.steps = '8'") as source:
        assert source.table.num_rows == 12 + 8, "runs and their child runs are found, and the rows of each sweep taken once"
    with read_runs(target, "params.`lora.style_a.weight` = '0.5'") as source:
        weights = {row["loras"][0]["weight"] for row in source.table.select(["loras"]).to_pylist()}
        assert weights == {0.5}
        assert source.table.num_rows == 8
        assert len(source.run_ids) == 2
    with read_runs(target, "tags.`sdbatch.sweep` = 'two'") as source:
        assert source.table.num_rows == 8


def test_a_folder_that_now_holds_another_sweep_is_not_taken(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep("one", seeds=2)
    project(folder, target)
    about = json.loads((folder / "sweep.json").read_text())
    SweepFolder(folder).write_about(about | {"plan_id": "grown"})
    with read_runs(target, "one") as source:
        assert source.folders == (folder,), "it is still the folder that was sent"
    (folder / CURSOR).unlink()
    with read_runs(target, "one") as source:
        assert source.folders == ()
        assert source.table.num_rows == 6


def test_what_is_not_there_is_told_with_what_is(make_sweep: SweepMaker, target: Target, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="has no sweeps yet"):
        read_runs(target)
    project(make_sweep("strengths"), target)
    with pytest.raises(TrackingError, match=r"no sweep 'strenghts' .* Did you mean strengths\?"):
        read_runs(target, "strenghts")
    with pytest.raises(TrackingError, match="finds no sweep"):
        read_runs(target, "params.steps = '999'")
    with pytest.raises(TrackingError, match=r"mlflow\.db: "):
        read_runs(target, "params.steps === 3")
    with pytest.raises(FolderError, match="not a sweep folder"):
        read_folder(tmp_path)


def test_a_sweep_that_is_too_large_to_compare_is_refused(make_sweep: SweepMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbatch.tracking.source.MOST_ROWS", 11)
    with pytest.raises(FolderError, match="holds 12 images, and a comparison takes at most 11"):
        read_folder(make_sweep())
