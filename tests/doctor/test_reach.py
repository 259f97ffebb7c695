"""Drivers, engines and servers that are there, broken, slow or gone."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sdbatch.doctor import device, reach, table
from sdbatch.doctor.finding import Finding, Level, Site, ok
from sdbatch.run.launchers import ray
from tests.tracking.server import free_port


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def levels(findings: Iterable[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def site(launcher: str = "local", options: dict[str, str] | None = None, **tracking: str) -> Site:
    config = {"tracking": {"backend": "mlflow", **tracking}, "memory": {"device": "auto"}}
    return Site(Path("outputs"), config, launcher, options or {})


CARD = "0, NVIDIA H100, {driver}, 81559, {used}, {mode}, {errors}"


def smi(driver: str = "580.95.05", used: int = 4, mode: str = "Default", errors: str = "0") -> str:
    """A driver's tool that knows one card; asked for a list it names that."""
    card = CARD.format(driver=driver, used=used, mode=mode, errors=errors)
    return f'case "$1" in -L) echo "GPU 0: NVIDIA H100 (UUID: GPU-1)";; *) echo "{card}";; esac'


@pytest.mark.parametrize(
    ("script", "cuda", "faults", "warnings"),
    [
        (smi(), "13.0", set[str](), set[str]()),
        (smi(driver="535.104.05"), "13.0", {"device.torch"}, set[str]()),
        (smi(driver="535.104.05"), "12.8", set[str](), set[str]()),
        (smi(), None, {"device.torch"}, set[str]()),
        (smi(used=60_000), "13.0", set[str](), {"device.memory"}),
        (smi(mode="Prohibited"), "13.0", {"device.mode"}, set[str]()),
        (smi(errors="3"), "13.0", set[str](), {"device.memory"}),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18", "13.0", {"device.driver"}, set[str]()),
    ],
)
def test_drivers_and_cards(
    script: str, cuda: str | None, faults: set[str], warnings: set[str], programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "nvidia-smi", script)
    monkeypatch.setattr(device, "torch_cuda", lambda: cuda)
    found = levels(device.check_devices(site()))
    assert {name for name, level in found.items() if level is Level.fault} == faults
    assert {name for name, level in found.items() if level is Level.warning} == warnings


def test_a_driver_that_hangs_is_a_fault(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "nvidia-smi", "exec /bin/sleep 60")
    monkeypatch.setattr(device, "SMI_S", 0.2)
    assert levels(device.check_devices(site())) == {"device.driver": Level.fault}


@pytest.mark.usefixtures("programs")
def test_asking_for_a_gpu_where_there_is_none_is_a_fault() -> None:
    asked = Site(Path("outputs"), {"memory": {"device": "cuda:1"}})
    assert levels(device.check_devices(asked)) == {"device.gpu": Level.fault}
    assert levels(device.check_devices(site())) == {"device.gpu": Level.ok}


NODES = 'printf "n1 idle\\nn1 idle\\nn2 {state}\\n"'


@pytest.mark.parametrize(
    ("sinfo", "launcher", "level"),
    [
        (NODES.format(state="mixed"), "slurm", Level.ok),
        ('printf "n1 down*\\nn2 drained\\n"', "slurm", Level.fault),
        ('printf "n1 down*\\n"', "local", Level.warning),
        ("echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1", "slurm", Level.fault),
        ("exec /bin/sleep 60", "slurm", Level.fault),
    ],
)
def test_slurm(sinfo: str, launcher: str, level: Level, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "PATIENCE_S", 0.5)
    program(programs, "sinfo", sinfo)
    for name in ("squeue", "sbatch"):
        program(programs, name, "exit 0")
    assert levels(reach.check_slurm(site(launcher))) == {"engine.slurm": level}


@pytest.mark.usefixtures("programs")
def test_slurm_that_is_not_here_matters_only_to_who_asks() -> None:
    assert levels(reach.check_slurm(site())) == {}
    assert levels(reach.check_slurm(site("slurm"))) == {"engine.slurm": Level.fault}


def test_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{head.getsockname()[1]}")
        assert levels(reach.check_ray(site())) == {"engine.ray": Level.ok}
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.delenv("RAY_ADDRESS")
        assert levels(reach.check_ray(site("ray", {"address": address}))) == {"engine.ray": Level.ok}
    assert levels(reach.check_ray(site("ray", {"address": address}))) == {"engine.ray": Level.fault}
    monkeypatch.setattr(ray, "_raylets", set[str])
    monkeypatch.setattr(ray, "resolve", str)
    assert levels(reach.check_ray(site("ray"))) == {"engine.ray": Level.fault}
    assert levels(reach.check_ray(site())) == {}


def test_a_ray_address_of_the_environment_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert levels(reach.check_ray(site())) == {"engine.ray": Level.warning}


def test_a_partition_that_is_not_there_is_told(programs: Path) -> None:
    program(programs, "sbatch", "exit 0")
    program(programs, "squeue", "exit 0")
    program(programs, "sinfo", 'case "$*" in *%R*) echo low; echo high;; *) echo "n1 idle";; esac')
    assert [finding.level for finding in reach.check_slurm(site("slurm", {"partition": "low,high"}))] == [Level.ok]
    found = list(reach.check_slurm(site("slurm", {"partition": "nope"})))
    assert (found[-1].level, found[-1].todo) == (Level.fault, "Choose of: low, high.")


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.mark.parametrize(("status", "level"), [(200, Level.ok), (401, Level.ok), (503, Level.warning)])
def test_a_tracking_server_that_answers(status: int, level: Level) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("One", (Answer,), {"status": status}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = list(reach.check_mlflow(site(uri=f"http://me:hunter2@127.0.0.1:{server.server_port}")))
    finally:
        server.shutdown()
        server.server_close()
    assert levels(found) == {"tracking": level}
    assert "hunter2" not in found[0].found


def test_a_tracking_server_that_is_gone_or_hangs_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            start_s = time.monotonic()
            assert levels(reach.check_mlflow(site(uri=f"http://127.0.0.1:{port}"))) == {"tracking": Level.warning}
            assert time.monotonic() - start_s < 3


def test_a_damaged_tracking_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    assert levels(reach.check_mlflow(site(uri=f"sqlite:///{file}"))) == {"tracking": Level.ok}
    assert not file.exists()
    with sqlite3.connect(file) as database:
        database.execute("create table alembic_version (version_num text)")
    database.close()
    assert levels(reach.check_mlflow(site(uri=f"sqlite:///{file}"))) == {"tracking": Level.ok}
    file.write_bytes(b"not a database at all" * 100)
    assert levels(reach.check_mlflow(site(uri=f"sqlite:///{file}"))) == {"tracking": Level.warning}


def test_a_check_that_hangs_or_breaks_is_a_finding_and_the_others_are_told() -> None:
    def hang(site: Site) -> Iterable[Finding]:
        del site
        yield ok("hang.first", "said before")
        time.sleep(3600)

    def broken(site: Site) -> Iterable[Finding]:
        raise RuntimeError(str(site.folder))

    def fine(site: Site) -> Iterable[Finding]:
        del site
        yield ok("fine", "all is well")

    found = table.examine(Site(Path("x")), {"hang": hang, "broken": broken, "fine": fine}, patience_s=0.2)
    assert [(finding.check, finding.level) for finding in found] == [
        ("hang.first", Level.ok),
        ("hang", Level.fault),
        ("broken", Level.fault),
        ("fine", Level.ok),
    ]
