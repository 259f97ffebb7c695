"""Resuming by another launcher than the sweep was planned with."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.errors import ConfigError
from sdbatch.run.prepare import read_launcher_overrides
from tests.conftest import Sdbatch
from tests.engines.sweeps import REHEARSAL, check_exact


@pytest.mark.usefixtures("workspace")
def test_a_launcher_is_taken_whole_and_an_option_alone() -> None:
    whole = read_launcher_overrides(["hydra/launcher=slurm", "hydra.launcher.partition=a100", "hydra.launcher.setup=['module load cuda']"])
    assert (whole["name"], whole["partition"], whole["setup"], whole["timeout_min"]) == ("slurm", "a100", ["module load cuda"], 240)
    assert read_launcher_overrides(["hydra.launcher.workers=3", "hydra.launcher.wait=true"]) == {"workers": 3, "wait": True}
    with pytest.raises(ConfigError, match=r"hydra/launcher=slrm"):
        read_launcher_overrides(["hydra/launcher=slrm"])


def test_a_sweep_planned_for_a_cluster_is_made_here(workspace: Path, sdbatch: Sdbatch) -> None:
    planned = sdbatch(*REHEARSAL, "seed=range(0,40)", "hydra/launcher=template", "hydra.launcher.target=skypilot", "-m")
    assert planned.returncode == 0, planned.stderr
    assert "num_nodes: 1" in planned.stdout
    wrong = sdbatch("resume", "sweep", "hydra.launcher.partition=a100")
    assert wrong.returncode == 2
    assert "hydra.launcher.partition: template has no such option" in wrong.stderr
    done = sdbatch("resume", "sweep", "hydra/launcher=local", "hydra.launcher.workers=2")
    assert done.returncode == 0, done.stderr
    check_exact(workspace / "sweep", 40)


def test_an_engine_that_is_not_here_is_refused_before_anything_is_submitted(
    workspace: Path, sdbatch: Sdbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(workspace))
    refused = sdbatch(*REHEARSAL, "seed=1", "hydra/launcher=slurm")
    assert refused.returncode == 2
    assert "there is no srun and sbatch here" in refused.stderr
    assert not (workspace / "sweep").exists()


def test_a_sweep_that_was_never_submitted_cannot_be_stopped(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "seed=1", check=True)
    refused = sdbatch("stop", "sweep")
    assert refused.returncode == 2
    assert "nothing was submitted" in refused.stderr


def test_a_gpu_is_not_reserved_for_work_on_the_cpu(workspace: Path, sdbatch: Sdbatch) -> None:
    refused = sdbatch(*REHEARSAL, "seed=1", "hydra/launcher=template", "memory.device=cpu")
    assert refused.returncode == 2
    assert "hydra.launcher.gpus_per_worker=0" in refused.stderr
    assert not (workspace / "sweep").exists()
