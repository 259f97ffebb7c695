"""A tracking server that is down, hangs, refuses or cuts its answers costs no image, no exit code, and few seconds."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import pytest

from sdbatch.tracking.store import make_sqlite
from tests.faults.conftest import SEEDS
from tests.faults.program import QUIET, check_whole, run
from tests.tracking.server import Proxy, free_port, serving

pytestmark = pytest.mark.mlflow

TRACKED = (*(word for word in QUIET if not word.startswith("tracking")), SEEDS, "out=sweep", "-m")
MOST_S = 90
"""With the import of MLflow on a busy machine; a server's retries alone would take four minutes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    folder = tmp_path_factory.mktemp("server")
    make_sqlite(folder / "mlflow.db")
    with serving(folder, folder / "mlflow.db") as uri:
        yield uri


def test_a_server_that_is_down_costs_nothing(tmp_path: Path, clean: Path) -> None:
    start_s = time.monotonic()
    ended = run(tmp_path, *TRACKED, f"tracking.uri=http://me:hunter2@127.0.0.1:{free_port()}")
    assert time.monotonic() - start_s < MOST_S
    check_whole(tmp_path / "sweep", clean, ended)
    assert "16 images not yet sent" in ended.told
    assert "sdbatch track sweep" in ended.told
    for path in (tmp_path / "sweep").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()
    assert "hunter2" not in ended.told + ended.errors


def test_a_server_that_begins_to_hang_costs_seconds_and_is_made_up_for(tmp_path: Path, clean: Path, server: str) -> None:
    """Answers of 503 and answers cut in the middle go the same way: tests/tracking/test_server.py."""
    proxy = Proxy(server)
    proxy.mode, proxy.good_connections = "hang", 6
    tracked = [*TRACKED, f"tracking.uri={proxy.uri}", "tracking.experiment=hanging"]
    try:
        start_s = time.monotonic()
        ended = run(tmp_path, *tracked)
        assert time.monotonic() - start_s < MOST_S
        check_whole(tmp_path / "sweep", clean, ended)
        assert "not yet sent" in ended.told
        proxy.mode = "pass"
        later = run(tmp_path, "track", "sweep", f"uri={proxy.uri}", "experiment=hanging")
        assert later.code == 0, later.told
    finally:
        proxy.close()
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("hanging")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {found.info.status for found in runs} == {"FINISHED"}
    names = [found.info.run_name for found in runs]
    assert len(names) == len(set(names)), "each run once"
