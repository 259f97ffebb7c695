from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sdbatch.errors import FolderError
from sdbatch.results.block import PACKINGS
from sdbatch.results.compact import compact
from sdbatch.results.folder import SweepFolder
from sdbatch.results.lock import holding
from sdbatch.results.reader import load_rows
from sdbatch.tracking import project as project_module
from sdbatch.tracking import store as store_module
from sdbatch.tracking.cursor import CURSOR, Cursor
from sdbatch.tracking.project import LOCK, project
from sdbatch.tracking.shipment import Shipment, log_grid
from sdbatch.tracking.store import Store, file_system_notice, make_sqlite, open_store
from sdbatch.tracking.target import Target, TrackingError, default_uri
from tests.tracking.conftest import SweepMaker, make_cell, write_block


def query(target: Target, sql: str) -> list[tuple[Any, ...]]:
    assert target.sqlite_file is not None
    with sqlite3.connect(target.sqlite_file) as connection:
        return connection.execute(sql).fetchall()


def content(target: Target) -> dict[str, list[tuple[Any, ...]]]:
    """Everything of the store that must not change by sending again."""
    return {
        "runs": query(target, "select run_uuid, name, status, start_time, end_time from runs order by 1"),
        "params": query(target, "select run_uuid, key, value from params order by 1, 2"),
        "metrics": query(target, "select run_uuid, key, step, value, timestamp from metrics order by 1, 2, 3, 4"),
        "tags": query(target, "select run_uuid, key, value from tags order by 1, 2"),
    }


def artifacts(target: Target) -> list[str]:
    assert target.sqlite_file is not None
    root = target.sqlite_file.parent / "mlflow-artifacts"
    return sorted(str(path.relative_to(root).as_posix().partition("/artifacts/")[2]) for path in root.rglob("*") if path.is_file())


def test_a_sweep_becomes_a_run_with_a_child_per_strength(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep(seeds=6)
    report = project(folder, target)
    assert report.ok
    assert (report.images, report.sent, report.unsent, report.runs) == (18, 18, 0, 4)
    runs = query(target, "select name, status from runs order by start_time, name")
    assert {name for name, _ in runs} == {"sweep", "lora.style_a.weight=0", "lora.style_a.weight=0.5", "lora.style_a.weight=1"}
    assert {status for _, status in runs} == {"FINISHED"}
    parents = query(target, "select count(*) from tags where key = 'mlflow.parentRunId' and value = '" + report.run_id + "'")
    assert parents == [(3,)]
    assert query(target, f"select value from params where key = 'steps' and run_uuid = '{report.run_id}'") == [("8",)]
    assert query(target, "select count(*) from params where key = 'lora.style_a.weight'") == [(3,)]
    assert query(target, "select count(*) from params where key = 'steps'") == [(4,)], "a child run tells all of its parameters"
    assert query(target, "select count(*) from params where key in ('device', 'batch_size')") == [(2,)], "what may change is the sweep's"
    assert query(target, "select count(*) from metrics where key = 'denoise_s'") == [(18,)]
    assert len([name for name in artifacts(target) if name.startswith("samples/")]) == 3 * 4
    assert {"rows.parquet", "config.yaml", "sweep.json"} <= set(artifacts(target))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", list(PACKINGS))
def test_packed_images_are_sent_as_samples_out_of_their_blocks(
    make_sweep: SweepMaker, target: Target, form: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(project_module, "LARGE", 10)
    folder = SweepFolder(make_sweep(seeds=6, failed=1, form=form))
    assert not list(folder.images.iterdir())
    assert project(folder.path, target).ok
    digests = load_rows(folder, ["image_id", "image_sha256"])
    expected = dict(zip(digests["image_id"].to_pylist(), digests["image_sha256"].to_pylist(), strict=True))
    sent = sample_files(target)
    assert len(sent) == (4 if large else 3 * 4), "as many as of a sweep of files"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == expected[path.stem] for path in sent)
    stamps = {path: path.stat().st_mtime_ns for path in sent}
    write_block(folder.path, [make_cell(2.0, 0)], block=1, form=form)
    compact(folder)
    assert project(folder.path, target).ok
    again = {path: path.stat().st_mtime_ns for path in sample_files(target)}
    assert stamps.items() <= again.items(), "nothing is sent twice, wherever it lies by now"
    assert len(again) <= 8 if large else len(again) == 13


def sample_files(target: Target) -> list[Path]:
    assert target.sqlite_file is not None
    return sorted((target.sqlite_file.parent / "mlflow-artifacts").rglob("samples/*.png"))


def test_sending_again_changes_nothing(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep()
    project(folder, target)
    before, files = content(target), artifacts(target)
    assert project(folder, target).ok
    assert (content(target), artifacts(target)) == (before, files)


def test_sending_again_without_the_cursor_changes_nothing(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep("it's mine")
    project(folder, target)
    before = content(target)
    (folder / CURSOR).unlink()
    assert project(folder, target).ok
    assert content(target) == before
    (folder / CURSOR).write_text('{"version": 1, "stores": {"x": 3')
    assert project(folder, target).ok
    assert content(target) == before


class Died(BaseException):
    """Stands for the process being killed: nothing may catch it."""


def test_killed_at_any_call_and_repeated_everything_is_there_once(
    make_sweep: SweepMaker, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Store.call
    calls = 0

    def count(self: Store, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Store, "call", count)
    undisturbed = make_sweep("undisturbed", weights=(0.0, 1.0), seeds=2)
    project(undisturbed, target)
    total, made = calls, {key: len(rows) for key, rows in content(target).items()}
    folder = make_sweep("killed", weights=(0.0, 1.0), seeds=2)
    for fatal in range(total + 3):
        left = fatal

        def die(self: Store, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            result = honest(self, *args, **kwargs)  # the call reached the store, its answer is lost
            left -= 1
            if left < 0:
                raise Died
            return result

        monkeypatch.setattr(Store, "call", die)
        try:
            project(folder, target)
        except Died:
            continue
        break
    monkeypatch.setattr(Store, "call", honest)
    assert project(folder, target).ok
    assert {key: len(rows) for key, rows in content(target).items()} == {key: 2 * count for key, count in made.items()}
    assert query(target, "select count(*) from runs where status = 'RUNNING'") == [(0,)]


def test_more_seeds_add_steps_to_the_same_runs(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep(weights=(0.0, 1.0), seeds=2)
    first = project(folder, target)
    write_block(folder, [make_cell(weight, seed) for weight in (0.0, 1.0) for seed in (2, 3)], block=1)
    second = project(folder, target)
    (folder / CURSOR).unlink()
    SweepFolder(folder).write_about(SweepFolder(folder).read_about() | {"plan_id": "grown"})
    assert project(folder, target).run_id == second.run_id == first.run_id
    assert (second.images, second.sent, second.runs) == (8, 8, 3)
    steps = query(target, "select step from metrics where key = 'denoise_s' order by 1")
    assert [step for (step,) in steps] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert query(target, "select count(*) from params where key = 'seed'") == [(0,)]
    table = next(path for path in (folder.parent / "mlflow-artifacts").rglob("rows.parquet"))
    assert pq.read_metadata(table).num_rows == 8


def test_a_parameter_that_varies_now_stays_as_it_was(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep(weights=(0.5,), seeds=1)
    project(folder, target)
    write_block(folder, [make_cell(0.5, 0, prompt="a cat")], block=1)
    report = project(folder, target)
    assert report.ok
    assert query(target, "select value from params where key = 'prompt'") == [("a fox",)]


def test_the_status_tells_how_the_sweep_ended(make_sweep: SweepMaker, target: Target) -> None:
    def status(run_id: str) -> str:
        return str(query(target, f"select status from runs where run_uuid = '{run_id}'")[0][0])

    going = make_sweep("going")
    assert status(project(going, target, running=True).run_id) == "RUNNING"
    assert status(project(going, target).run_id) == "FINISHED"
    assert query(target, "select count(*) from runs where status = 'RUNNING'") == [(0,)]
    assert status(project(make_sweep("faulty", failed=1), target).run_id) == "FAILED"
    stopped = make_sweep("stopped")
    about = json.loads((stopped / "sweep.json").read_text())
    (stopped / "sweep.json").write_text(json.dumps(about | {"cells": 99}))
    assert status(project(stopped, target).run_id) == "KILLED"


def test_a_lost_database_is_filled_anew(make_sweep: SweepMaker, target: Target, empty_database: Path) -> None:
    folder = make_sweep()
    project(folder, target)
    assert target.sqlite_file is not None
    target.sqlite_file.write_bytes(empty_database.read_bytes())
    report = project(folder, target)
    assert (report.ok, report.runs) == (True, 4)
    assert query(target, "select count(*) from runs") == [(4,)]


def test_a_copied_folder_has_runs_of_its_own(make_sweep: SweepMaker, target: Target, tmp_path: Path) -> None:
    folder = make_sweep()
    first = project(folder, target)
    copy = tmp_path / "outputs" / "copy"
    shutil.copytree(folder, copy)
    assert project(copy, target).run_id != first.run_id
    moved = tmp_path / "outputs" / "moved"
    folder.rename(moved)
    assert project(moved, target).run_id == first.run_id


def test_above_the_limit_there_is_one_run(make_sweep: SweepMaker, target: Target) -> None:
    report = project(make_sweep(), Target(target.uri, most_groups=2))
    assert report.runs == 1
    assert query(target, "select count(*) from runs") == [(1,)]
    assert query(target, "select count(*) from metrics where key = 'denoise_s'") == [(12,)]


def test_no_password_is_written_anywhere(make_sweep: SweepMaker, target: Target, tmp_path: Path) -> None:
    folder = make_sweep(config='{"tracking":{"uri":"https://user:hunter2@host/"}}')
    (folder / "config.yaml").write_text("tracking:\n  uri: https://user:hunter2@host/\n")
    secret = Target(target.uri + "?password=hunter2")
    report = project(folder, secret)
    assert report.ok
    assert "hunter2" not in str(report) + repr(report)
    assert "hunter2" not in (folder / CURSOR).read_text()
    # Images are sent as they are: that a cell's configuration names no store is the plan's matter.
    sent = [path for path in (tmp_path / "outputs" / "mlflow-artifacts").rglob("*") if path.is_file() and path.suffix != ".png"]
    assert sent
    for path in sent:
        assert b"hunter2" not in path.read_bytes(), path
        if path.name == "rows.parquet":
            assert "***@host" in pq.read_table(path)["config"][0].as_py()
    assert not [row for rows in content(secret).values() for row in rows if "hunter2" in str(row)]


def test_only_one_process_sends_a_sweep(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep()
    with holding(folder / LOCK), pytest.raises(FolderError, match="locked by"):
        project(folder, target)


def test_eight_sweeps_at_once_into_one_database_are_there_whole(make_sweep: SweepMaker, target: Target) -> None:
    folders = [make_sweep(f"sweep{number}", weights=(0.0,), seeds=2) for number in range(8)]
    with ThreadPoolExecutor(len(folders)) as pool:
        reports = list(pool.map(partial(project, target=target), folders))
    assert [str(report.error) for report in reports if not report.ok] == [], "no `database is locked`"
    assert query(target, "select count(*), count(distinct run_uuid) from runs where status = 'FINISHED'") == [(8, 8)]
    assert query(target, "select count(*) from metrics where key = 'denoise_s'") == [(8 * 2,)]
    assert query(target, "pragma integrity_check") == [("ok",)]


def test_what_is_no_sweep_is_refused(tmp_path: Path, target: Target) -> None:
    with pytest.raises(FolderError, match="not a sweep folder"):
        project(tmp_path, target)


def test_a_deleted_experiment_is_told(make_sweep: SweepMaker, target: Target) -> None:
    store = open_store(target)
    store.client.delete_experiment(store.experiment_id)
    report = project(make_sweep(), target)
    assert report.unsent == 12
    assert "is deleted there" in str(report)
    assert "sdbatch track" in str(report)


def test_a_deadline_stops_between_two_calls_and_the_rest_follows(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep()
    report = project(folder, Target(target.uri, deadline_s=0.0))
    assert "not finished within 0 s" in str(report.error)
    assert report.unsent == 12
    assert project(folder, target).unsent == 0


def test_a_broken_database_is_a_report(make_sweep: SweepMaker, tmp_path: Path) -> None:
    folder = make_sweep()
    (tmp_path / "outputs" / "mlflow.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    report = project(folder, Target(default_uri(folder)))
    assert report.unsent == 12
    assert "not a database" in str(report.error)


def test_grids_are_added_to_the_run(make_sweep: SweepMaker, target: Target, tmp_path: Path) -> None:
    folder = make_sweep()
    picture = tmp_path / "my-grid.png"
    picture.write_bytes(b"png")
    with pytest.raises(TrackingError):
        log_grid(target, ["0" * 32], [picture])
    log_grid(target, [project(folder, target).run_id], [picture])
    assert "my-grid.png" in artifacts(target)
    (folder / "grid.png").write_bytes(b"png")
    project(folder, target)
    assert "grid.png" in artifacts(target)


def test_the_cursor_knows_each_store_apart(make_sweep: SweepMaker, target: Target) -> None:
    folder = make_sweep()
    project(folder, target)
    project(folder, Target(target.uri, experiment="other"))
    assert Cursor(folder, target).sent.run_id != Cursor(folder, Target(target.uri, experiment="other")).sent.run_id
    assert Cursor(folder, Target("http://elsewhere")).sent.run_id == ""


def schema_of(path: Path) -> dict[str, list[str]]:
    """The lines of every table and index; SQLite's copies of a table list their checks in any order."""
    with sqlite3.connect(path) as connection:
        found = connection.execute("select name, sql from sqlite_master").fetchall()
    return {name: sorted(line.strip().rstrip(",") for line in (sql or "").splitlines()) for name, sql in found}


def test_the_database_is_as_mlflow_makes_it(empty_database: Path, tmp_path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    plain = tmp_path / "plain.db"
    SqlAlchemyStore(f"sqlite:///{plain}", (tmp_path / "artifacts").as_uri()).engine.dispose()
    assert schema_of(empty_database) == schema_of(plain)
    assert not list(empty_database.parent.glob(".tmp-*"))


def test_a_database_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mlflow.db"

    def write_late(temporary: Path, _artifacts: str) -> None:
        temporary.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    monkeypatch.setattr(store_module, "_migrate", write_late)
    make_sqlite(path)
    assert path.read_bytes() == b"theirs"
    make_sqlite(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(("kind", "warned"), [("ext4", False), ("nfs4", True), ("lustre", True)])
def test_shared_file_systems_are_warned_about(kind: str, warned: bool) -> None:
    mounts = f"/dev/a / ext4 rw 0 0\nhost:/x /data {kind} rw 0 0\n"
    assert (file_system_notice(Path("/data/outputs/mlflow.db"), mounts) is not None) == warned
    assert file_system_notice(Path("/home/mlflow.db"), mounts) is None


def test_a_failure_keeps_what_was_sent(make_sweep: SweepMaker, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_sweep()

    def refuse(self: Shipment, *_: Any, **options: object) -> None:
        raise TrackingError("disk full over there")

    with monkeypatch.context() as patch:
        patch.setattr(Shipment, "send_files", refuse)
        report = project(folder, target)
    assert report.error == "disk full over there"
    assert query(target, "select count(*) from runs") == [(4,)]
    assert project(folder, target).ok
    assert query(target, "select count(*) from runs") == [(4,)]


def test_a_large_sweep_is_one_run_of_counts_by_few_requests_and_no_row(
    make_sweep: SweepMaker, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_sweep(seeds=6, failed=2)
    about = SweepFolder(folder).read_about()
    SweepFolder(folder).write_about({**about, "cells": 24, "axes": {"lora.style_a.weight": 3, "seed": 6}, "versions": {"torch": "2.13"}})
    monkeypatch.setattr(project_module, "LARGE", 20)

    def never(*_: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(project_module, "load_rows", never)
    monkeypatch.setattr("sdbatch.tracking.shipment.write_table", never)
    first = project(folder, target, running=True)
    assert first.ok and (first.images, first.sent, first.runs) == (18, 18, 1)
    assert not sample_files(target) and project(folder, target, running=True).ok and len(sample_files(target)) == 4
    write_block(folder, [make_cell(2.0, seed) for seed in range(6)], block=1)
    calls: list[str] = []
    real = Store.call

    def counted(self: Store, function: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return real(self, function, *arguments, **options)

    monkeypatch.setattr(Store, "call", counted)
    second = project(folder, target)
    assert second.ok and (second.images, second.run_id) == (24, first.run_id)
    assert len(calls) <= 5, calls  # in five minutes; a server takes one in thirty seconds of each sweep
    assert query(target, "select count(*) from runs") == [(1,)]
    done = query(target, "select value, step from metrics where key = 'images_done' order by step")
    assert done == [(16.0, 18), (22.0, 24)]
    assert query(target, "select value from metrics where key = 'images_per_s' order by step limit 1")[0][0] > 0
    assert query(target, "select status from runs") == [("FAILED",)]
    assert {"config.yaml", "sweep.json"} <= set(artifacts(target)) and not {"rows.parquet", "plan.parquet"} & set(artifacts(target))
