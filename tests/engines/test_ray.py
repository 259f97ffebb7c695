"""A real Ray cluster: submitted and left alone, workers killed, a node lost, stopped, the head lost. No image is lost or made twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.run.engine_state import engine_states
from tests.conftest import Sdbatch
from tests.engines.ray_cluster import RayCluster
from tests.engines.slurm_cluster import environment_of
from tests.engines.sweeps import SLOW, check_exact, made
from tests.engines.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra 'ray'")]

SECRETS = ("hunter2-password", "hunter2-token")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    running = RayCluster(nodes=2)
    try:
        yield running
    finally:
        running.lose_all()


@pytest.fixture
def ray_cluster(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """The cluster, for commands that know its token."""
    for name, value in cluster.settings.items():
        monkeypatch.setenv(name, value)
    return cluster


def workers(folder: Path) -> list[int]:
    """Processes that work on the sweep, supervisors first."""
    found: list[tuple[bool, int]] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                words = (path / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if "worker" in words and str(folder) in words:
                found.append((any(word.startswith("device=") for word in words), int(path.name)))
    return [pid for _, pid in sorted(found)]


def alive(folder: Path) -> int:
    return sum(state.alive for state in engine_states(SweepFolder(folder)))


def test_workers_are_killed_and_a_node_is_lost_and_every_image_is_made_once(
    workspace: Path, sdbatch: Sdbatch, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = workspace / "sweep"
    fleet = ("hydra/launcher=ray", f"hydra.launcher.address={ray_cluster.address}", "hydra.launcher.workers=2")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS[0])
    submitted = sdbatch(*SLOW, "seed=range(0,256)", *fleet, f"+hydra.launcher.runtime_env.env_vars={{MY_TOKEN: {SECRETS[1]}}}")
    assert submitted.returncode == 0, submitted.stderr
    assert "submitted 2 (2 workers, ray)" in submitted.stdout
    wait_for(lambda: made(sweep) >= 24, 60, "first images")
    assert alive(sweep) == 2
    assert "nothing submitted" in sdbatch("resume", "sweep").stdout
    supervisors = workers(sweep)[:2]
    found = environment_of(supervisors[0])
    assert (found["MLFLOW_TRACKING_PASSWORD"], found["MY_TOKEN"]) == SECRETS
    os.kill(workers(sweep)[-1], signal.SIGKILL)
    os.kill(supervisors[0], signal.SIGKILL)
    before = made(sweep)
    wait_for(lambda: made(sweep) >= before + 24, 60, "more images")
    ray_cluster.lose_node()
    before = made(sweep)
    wait_for(lambda: made(sweep) >= before + 24, 60, "more images from the other node")
    ray_cluster.add_node()
    wait_for(lambda: alive(sweep) == 0, 90, "end of the workers")
    check_exact(sweep, 256)
    session = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/session_latest"
    kept = [path for folder in (sweep, session / "logs") for path in folder.rglob("*") if path.is_file()]
    assert any("raylet" in path.name for path in kept)
    assert not [path for path in kept if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


def test_a_stopped_sweep_goes_on_and_outlives_its_cluster(workspace: Path, sdbatch: Sdbatch, ray_cluster: RayCluster) -> None:
    sweep = workspace / "sweep"
    fleet = ("hydra/launcher=ray", f"hydra.launcher.address={ray_cluster.address}", "hydra.launcher.workers=2")
    sdbatch(*SLOW, "seed=range(0,320)", *fleet, check=True)
    wait_for(lambda: made(sweep) >= 8, 60, "first images")
    assert "stopped 2 workers, ray" in sdbatch("stop", "sweep").stdout
    wait_for(lambda: not workers(sweep), 90, "end of the workers")
    partial = made(sweep)
    assert partial < 320
    sdbatch("resume", "sweep", check=True)
    wait_for(lambda: made(sweep) >= partial + 8, 60, "images after the resume")
    ray_cluster.lose_all()
    wait_for(lambda: not workers(sweep), 90, "end of workers without a cluster")
    assert made(sweep) < 320
    here = sdbatch("resume", "sweep", "hydra/launcher=local", "hydra.launcher.workers=4")
    assert here.returncode == 0, here.stderr
    check_exact(sweep, 320)
