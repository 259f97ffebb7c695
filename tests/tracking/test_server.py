from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.run.projecting import EVERY_S
from sdbatch.tracking.project import project
from sdbatch.tracking.source import read_runs
from sdbatch.tracking.target import Target
from tests.tracking.conftest import SweepMaker, make_cell, write_block
from tests.tracking.server import Proxy, free_port, serving

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.mlflow

SECONDS = 12
"""A projection whose server is down ends within these, the import of MLflow included."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Generator[str]:
    """A real server whose database was made by us, as `mlflow ui` on `outputs/mlflow.db` would find it."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    with serving(folder, folder / "mlflow.db") as uri:
        yield uri


@pytest.fixture
def proxy(server: str) -> Generator[Proxy]:
    proxy = Proxy(server)
    yield proxy
    proxy.close()


def runs_of(uri: str, experiment: str) -> list[Run]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    return list(client.search_runs([known.experiment_id])) if known else []


def test_a_real_server_has_everything_once(make_sweep: SweepMaker, server: str) -> None:
    from mlflow import MlflowClient

    folder, target = make_sweep(seeds=3), Target(server, experiment="once")
    report = project(folder, target)
    assert report.ok, report
    assert project(folder, target).ok
    assert len(runs_of(server, "once")) == report.runs == 4
    client = MlflowClient(server)
    assert {file.path for file in client.list_artifacts(report.run_id)} == {"rows.parquet", "config.yaml", "sweep.json"}
    child = next(run for run in runs_of(server, "once") if run.data.params.get("lora.style_a.weight") == "0.5")
    assert child.data.tags["mlflow.parentRunId"] == report.run_id
    assert len(client.list_artifacts(child.info.run_id, "samples")) == 3
    assert [metric.step for metric in client.get_metric_history(child.info.run_id, "denoise_s")] == [0, 1, 2]


def test_a_large_sweep_asks_a_server_once_in_thirty_seconds(
    make_sweep: SweepMaker, proxy: Proxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times in each period at most while it runs, and a few times more at its end; all of it is one run."""
    monkeypatch.setattr("sdbatch.tracking.project.LARGE", 10)
    folder, target = make_sweep(seeds=6), Target(proxy.uri, experiment="large")
    SweepFolder(folder).write_about({**SweepFolder(folder).read_about(), "cells": 30})
    asked: list[int] = []
    for block, running in enumerate((True, True, True, False)):
        proxy.requests.clear()
        if block:
            write_block(folder, [make_cell(1 + block / 4, seed) for seed in range(4)], block=block)
        assert project(folder, target, running=running).ok
        asked.append(len(proxy.requests))
    assert max(asked[:3]) <= EVERY_S / 30 and asked[2:] == [4, 6], asked
    (run,) = runs_of(server, "large")
    assert run.info.status == "FINISHED" and run.data.metrics["images_done"] == 30
    from mlflow import MlflowClient

    assert len(MlflowClient(server).list_artifacts(run.info.run_id, "samples")) == 4


def test_rows_and_images_come_back_without_the_folder(make_sweep: SweepMaker, server: str) -> None:
    folder, target = make_sweep("away", seeds=5), Target(server, experiment="away", samples=2)
    assert project(folder, target).ok
    folder.rename(folder.with_name("gone"))
    with read_runs(target, "away") as source:
        assert source.table.num_rows == 15
        assert source.folders == ()
        rows = source.table.select(["image_id", "image", "seed"]).to_pylist()
        paths = [source.path(row["image_id"], row["image"]) for row in rows]
        assert sum(path is not None for path in paths) == 3 * 2
        kept = next(path for path in paths if path is not None)
        assert kept.read_bytes() == (folder.with_name("gone") / "images" / kept.name).read_bytes()
    assert not kept.exists(), "what was downloaded is removed"


def test_nobody_listens(make_sweep: SweepMaker) -> None:
    folder = make_sweep()
    start = time.monotonic()
    report = project(folder, Target(f"http://me:hunter2@127.0.0.1:{free_port()}"))
    assert time.monotonic() - start < 3
    assert report.unsent == 12
    assert "12 images not yet sent" in str(report)
    assert f"sdbatch track {folder}" in str(report)
    assert "hunter2" not in str(report)


def test_a_server_that_is_down_does_not_even_import_mlflow(make_sweep: SweepMaker) -> None:
    code = (
        "import sys; from pathlib import Path; from sdbatch.tracking.project import project; from sdbatch.tracking.target import Target;"
        f"r = project(Path({str(make_sweep())!r}), Target('http://127.0.0.1:{free_port()}'));"
        "print(r.unsent, 'mlflow' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["12", "False", "False"]


@pytest.mark.parametrize("mode", ["hang", "503", "cut"])
@pytest.mark.parametrize("good", [0, 9])
def test_a_bad_server_costs_seconds_and_loses_nothing(make_sweep: SweepMaker, proxy: Proxy, server: str, mode: str, good: int) -> None:
    folder, experiment = make_sweep(seeds=2), f"{mode}-{good}"
    proxy.mode, proxy.good_connections = mode, good
    start = time.monotonic()
    report = project(folder, Target(proxy.uri, experiment=experiment, timeout_s=1))
    assert time.monotonic() - start < SECONDS
    assert not report.ok
    assert report.unsent == 6
    proxy.good_connections = 10**9
    assert project(folder, Target(proxy.uri, experiment=experiment, timeout_s=5)).ok
    runs = runs_of(server, experiment)
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [len(runs_with_steps(server, run)) for run in runs if "sdbatch.group" in run.data.tags] == [2, 2, 2]


def runs_with_steps(uri: str, run: Run) -> list[int]:
    from mlflow import MlflowClient

    return [metric.step for metric in MlflowClient(uri).get_metric_history(run.info.run_id, "denoise_s")]
