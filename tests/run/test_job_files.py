"""The batch file and the job templates, as reviewed."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import yaml

from sdbatch.config.launcher import RayLauncher, SlurmLauncher, TemplateLauncher, read_launcher
from sdbatch.errors import ConfigError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers import ray, slurm
from sdbatch.run.launchers.template import job_file

GOLDEN = Path(__file__).parent.parent / "golden"
OUT = SweepFolder("/shared/sweeps/foxes")


def same(text: str, name: str) -> None:
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text)
    assert text == path.read_text()


def test_the_batch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="needs the extra 'slurm'")
    for name in ("srun", "sbatch"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\necho Submitted batch job 12\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    launcher = SlurmLauncher(
        workers=8,
        gpus_per_worker=2,
        mem_gb=32,
        partition="a100",
        constraint="nvme",
        parallel=4,
        options={"reservation": "mine"},
        setup=["module load cuda/12", "source ${HOME}/venv/bin/activate"],
        srun=["--container-image=sdbatch.sqsh"],
        python="python",
    )
    submission = slurm.submit(SweepFolder(tmp_path / "foxes"), launcher, "red foxes")
    assert (submission.job, submission.workers) == ("12", 8)
    folder = tmp_path / "foxes/slurm"
    same((folder / "12_submission.sh").read_text().replace(str(tmp_path), "/shared"), "slurm.sh")
    assert len(list(folder.glob("12_*_submitted.pkl"))) == 8


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("invalid partition specified: a1000", r"hydra\.launcher\.partition: .*invalid partition specified: a1000\)\. `sinfo"),
        ("Memory specification can not be satisfied", r"hydra\.launcher\.mem_gb: .*Memory"),
        ("Unable to contact slurm controller (connect failure)", r"hydra/launcher=slurm: .*Slurm does not answer: try `sinfo`"),
        ("Who knows", r"hydra/launcher=slurm: .*\(Who knows\)\. Look at hydra\.launcher"),
    ],
)
def test_what_sbatch_refuses_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: str, told: str
) -> None:
    pytest.importorskip("submitit", reason="needs the extra 'slurm'")
    for name, text in (("srun", ""), ("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")):
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match=told):
        slurm.submit(SweepFolder(tmp_path / "foxes"), SlurmLauncher(partition="a1000"), "foxes")
    assert capfd.readouterr().err == ""


def test_a_time_limit_within_its_own_warning_is_refused() -> None:
    assert read_launcher({"name": "slurm", "timeout_min": 4}) == SlurmLauncher(timeout_min=4)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.timeout_min=3: .* Give 4 or more"):
        read_launcher({"name": "slurm", "timeout_min": 3})


@pytest.mark.parametrize("target", ["kubernetes", "skypilot"])
def test_job_templates(target: str) -> None:
    launcher = TemplateLauncher(target=target, workers=16, gpus_per_worker=2, cpus_per_worker=8, mem_gb=64, mount="/shared")
    text = job_file(OUT, launcher, "Red foxes")
    same(text, f"{target}.yaml")
    assert yaml.safe_load(text)


def test_a_sweep_beside_the_volume_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.mount=/data: .* is not in it"):
        job_file(OUT, TemplateLauncher(mount="/data"), "foxes")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'sdbatch\[slurm\]'"):
        slurm.check()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'sdbatch\[ray\]'"):
        ray.check()


def test_what_ray_is_asked_for() -> None:
    asked = ray.task_options(RayLauncher(gpus_per_worker=2, cpus_per_worker=8, mem_gb=4, resources={"fast": 1.0}))
    assert asked == {
        "num_cpus": 8,
        "num_gpus": 2,
        "memory": 4 * 2**30,
        "resources": {"fast": 1.0},
        "max_retries": -1,
    }


def test_where_a_ray_head_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes: set[str] = set()
    monkeypatch.setattr(ray, "_raylets", lambda: set(nodes))
    assert ray.resolve("auto") == "auto"
    with pytest.raises(ConfigError, match="none runs on this machine"):
        ray.knock("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("10.0.0.1:6379")
    assert ray.resolve("auto") == "10.0.0.1:6379"
    nodes.add("10.0.0.2:6379")
    assert ray.resolve("auto") == "10.0.0.2:6379"
    nodes.add("10.0.0.3:6379")
    assert ray.resolve("auto") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert ray.resolve("auto") == "ray://head:10001"
    assert ray.resolve("head:6379") == "head:6379"
    for wrong in ("head", ":6379", "head:x"):
        with pytest.raises(ConfigError, match=rf"hydra\.launcher\.address={wrong}: give HOST:PORT"):
            ray.knock(wrong)


def test_a_head_that_is_gone_is_told_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"hydra\.launcher\.address={address}: no Ray cluster answers \(.*refused\)\. Start one"):
            ray.knock(address)
