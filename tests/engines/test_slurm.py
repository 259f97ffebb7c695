"""A real Slurm: submitted and left alone, preempted, killed, lost, cancelled, at its time limit. No image is lost or made twice."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.run.launchers.command import read_submissions
from sdbatch.run.roster import iter_owners
from tests.conftest import Sdbatch
from tests.engines.slurm_cluster import Slurm, environment_of, start_slurm
from tests.engines.sweeps import SLOW, check_exact, made
from tests.engines.waiting import wait_for
from tests.faults.program import start

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("slurmctld") is None or shutil.which("slurmd") is None, reason="needs slurmctld and slurmd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starts Slurm's daemons, which takes root"),
]
pytest.importorskip("submitit", reason="needs the extra 'slurm'")

ARRAY = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_worker=1", "hydra.launcher.partition=low")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    slurm = start_slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture
def slurm(cluster: Slurm, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster, with nothing in its queue, for commands run in the workspace."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    yield cluster
    cluster.cancel_all()


def job_of(folder: Path) -> str:
    """The job that was submitted last."""
    return read_submissions(SweepFolder(folder))[-1].job


def wait_until_made(folder: Path, count: int) -> None:
    wait_for(lambda: made(folder) >= count, 60, f"{count} images")


def wait_until_ended(slurm: Slurm, folder: Path) -> None:
    wait_for(lambda: not slurm.states(job_of(folder)), 90, "end of the job")


def test_an_array_is_preempted_killed_and_loses_a_node_and_makes_every_image_once(workspace: Path, sdbatch: Sdbatch, slurm: Slurm) -> None:
    sweep = workspace / "sweep"
    submitted = sdbatch(*SLOW, "seed=range(0,448)", *ARRAY, "hydra.launcher.workers=4")
    assert submitted.returncode == 0, submitted.stderr
    assert made(sweep) < 448, "it returns at once"
    assert "submitted 4 (4 workers, slurm job" in submitted.stdout
    job = job_of(sweep)
    again = sdbatch(*SLOW, "seed=range(0,448)", *ARRAY, "hydra.launcher.workers=4")
    assert "nothing submitted" in again.stdout
    wait_until_made(sweep, 24)
    devices = {index: device_of(slurm, job, index) for index in range(4)}
    places = {index: environment_of(pid) for index, pid in devices.items() if pid is not None}
    assert sorted((found["SLURMD_NODENAME"], found["CUDA_VISIBLE_DEVICES"]) for found in places.values()) == [
        (node, gpu) for node in ("n1", "n2") for gpu in "01"
    ]
    first, second = (min(index for index, found in places.items() if found["SLURMD_NODENAME"] == node) for node in ("n1", "n2"))
    # A job of a higher partition takes all of node n1 for a moment.
    slurm.run("sbatch", "--partition=high", "--nodelist=n1", "--gres=gpu:2", "--output=/dev/null", "--wrap=sleep 1")
    # A device's process is killed: its supervisor starts another, and Slurm sees nothing.
    victim = devices[second]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: device_of(slurm, job, second) not in (None, victim), 90, "restarted worker")
    wait_for(lambda: slurm.facts(f"{job}_{first}")["Restarts"] == "1", 90, "requeue of the preempted task")
    # The node is lost with everything on it; three seconds later the machine is back.
    slurm.kill_node("n2")
    time.sleep(3)
    slurm.start_node("n2")
    wait_until_ended(slurm, sweep)
    check_exact(sweep, 448)
    assert "goes back into the queue with work left" in "".join(path.read_text() for path in (sweep / "slurm").glob("*.out"))


def test_a_cancelled_array_stays_cancelled_and_a_resume_makes_the_rest(workspace: Path, sdbatch: Sdbatch, slurm: Slurm) -> None:
    sweep = workspace / "sweep"
    sdbatch(*SLOW, "seed=range(0,192)", *ARRAY, "hydra.launcher.workers=2", check=True)
    wait_until_made(sweep, 8)
    first = job_of(sweep)
    told = sdbatch("status", "sweep").stdout
    assert f"slurm job {first}: 2 running" in told
    assert "Its workers are there: sdbatch stop sweep" in told
    stopped = sdbatch("stop", "sweep")
    assert "stopped 2 workers, slurm job" in stopped.stdout
    wait_until_ended(slurm, sweep)
    partial = made(sweep)
    assert 0 < partial < 192
    assert {slurm.facts(f"{first}_{index}")["JobState"] for index in range(2)} == {"CANCELLED"}
    resumed = sdbatch("resume", "sweep", "hydra.launcher.workers=4", "hydra.launcher.wait=true")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{192 - partial} images made" in resumed.stdout
    assert job_of(sweep) != first
    check_exact(sweep, 192)


def test_who_waits_is_told_of_tasks_that_never_begin_and_of_those_that_end(workspace: Path, sdbatch: Sdbatch, slurm: Slurm) -> None:
    """An array whose second task is held for good; the first makes some, then both are cancelled."""
    sweep = workspace / "sweep"
    often = "import sys; from sdbatch.cli import main; from sdbatch.run import follow; follow.ASK_S = follow.LOOK_S = 0.5; sys.exit(main())"
    array = (*ARRAY, "hydra.launcher.workers=2", "hydra.launcher.wait=true", "+hydra.launcher.options.hold=true")
    driver = start(workspace, *SLOW, "seed=range(0,160)", *array, program=("-c", often))
    wait_for(lambda: (sweep / "engine.json").exists(), 60, "submission")
    job = job_of(sweep)
    assert f"slurm job {job}: 2 pending (JobHeldUser)" in sdbatch("status", "sweep").stdout
    slurm.run("scontrol", "release", f"{job}_0")
    wait_until_made(sweep, 8)
    slurm.run("scancel", f"{job}_1")
    assert driver.poll() is None, "one is at work"
    slurm.run("scancel", f"{job}_0")
    told, _ = driver.communicate(timeout=90)
    assert driver.returncode == 1
    assert f"2 workers, slurm job {job}: none left, and nobody else is at work. The workers' logs tell why (sweep/slurm, or Ray's)." in told
    partial = made(sweep)
    assert 0 < partial < 160
    assert told.splitlines()[-1] == f"{160 - partial} images left. Go on: sdbatch resume sweep"
    resumed = sdbatch("resume", "sweep", "hydra/launcher=local", "hydra.launcher.workers=4")
    assert f"{160 - partial} images made" in resumed.stdout
    check_exact(sweep, 160)


def test_a_warned_worker_goes_back_into_the_queue_and_an_early_warning_loses_nothing(
    workspace: Path, sdbatch: Sdbatch, slurm: Slurm
) -> None:
    sweep = workspace / "sweep"
    sdbatch(*SLOW, "seed=range(0,64)", *ARRAY, "hydra.launcher.workers=1", check=True)
    job = job_of(sweep)
    wait_for(lambda: "RUNNING" in slurm.states(job).values(), 90, "running task")
    # Python has only begun to start: there is no handler yet.
    slurm.run("scancel", "--signal=USR2", job)
    wait_until_made(sweep, 8)
    restarts = int(slurm.facts(job)["Restarts"])
    # What Slurm sends before the time limit.
    slurm.run("scancel", "--signal=USR2", job)
    wait_until_ended(slurm, sweep)
    assert int(slurm.facts(job)["Restarts"]) == restarts + 1
    assert slurm.facts(job)["JobState"] == "COMPLETED"
    check_exact(sweep, 64)


def test_a_time_limit_that_no_batch_fits_in_ends_the_task_with_the_reason(workspace: Path, sdbatch: Sdbatch, slurm: Slurm) -> None:
    sweep = workspace / "sweep"
    sdbatch(*SLOW, "seed=range(0,8)", "steps=999", *ARRAY, check=True)
    job = job_of(sweep)
    for life in ("0", "1"):
        wait_for(lambda life=life: slurm.facts(job)["Restarts"] == life and list(iter_owners(sweep / "claims")), 60, "claim")
        slurm.run("scancel", "--signal=USR2", job)
        wait_for(lambda: not list(iter_owners(sweep / "claims")), 90, "dropped batch")
    wait_until_ended(slurm, sweep)
    assert (slurm.facts(job)["JobState"], slurm.facts(job)["Restarts"]) == ("FAILED", "1")
    told = sdbatch("status", "sweep").stdout
    assert f"slurm job {job} was at its time limit 2 times in a row before one image was made" in told
    assert "sdbatch resume sweep hydra.launcher.timeout_min=" in told
    assert "Go on: sdbatch resume sweep" in told


def test_a_cell_that_kills_its_worker_fails_alone(workspace: Path, sdbatch: Sdbatch, slurm: Slurm) -> None:
    poisoned = [word for word in SLOW if not word.startswith("prompt=")]
    done = sdbatch(*poisoned, "prompt=a fox,drill:crash,a cat", *ARRAY, "hydra.launcher.wait=true")
    assert done.returncode == 1, done.stderr
    assert "2 images made" in done.stdout
    assert "1 failed" in done.stdout
    wait_until_ended(slurm, workspace / "sweep")
    assert slurm.facts(job_of(workspace / "sweep"))["JobState"] == "COMPLETED"
    check_exact(workspace / "sweep", 3, failed=1)


def device_of(slurm: Slurm, job: str, task: int) -> int | None:
    """The process that works with the device of an array's task."""
    return next((pid for pid in slurm.pids(job, task) if "device=" in Path(f"/proc/{pid}/cmdline").read_text()), None)
