"""A task of an engine: which of how many it is, what it does with its devices, and how several share and close a sweep."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest

from sdbatch.config.arguments import read_arguments
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.run.device import find_places
from sdbatch.run.launch import run_job
from sdbatch.run.message import Making, Step, parse
from sdbatch.run.node import Task, find_task, places_of
from sdbatch.run.outcome import Printed
from sdbatch.run.prepare import prepare
from sdbatch.run.projecting import EVERY_S, Turns, node_uri
from sdbatch.run.roster import iter_owners
from sdbatch.run.settings import Settings
from tests.conftest import Sdbatch
from tests.engines.sweeps import REHEARSAL, SLOW, check_exact, made
from tests.engines.waiting import wait_for


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        ({}, Task(0, 1)),
        ({"SLURM_JOB_ID": "7"}, Task(0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, Task(3, 4)),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, Task(3, 4)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, Task(1, 2)),
        ({"JOB_COMPLETION_INDEX": "3"}, Task(3, 1)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "8"}, Task(1, 8)),
    ],
)
def test_the_environment_says_which_task_this_is(environment: dict[str, str], task: Task) -> None:
    assert find_task(environment) == task


def test_devices_of_all_tasks_have_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    places = places_of(Task(2, 3), "auto", None)
    assert [(place.index, place.workers, place.device) for place in places] == [(4, 6, "cuda:4"), (5, 6, "cuda:5")]


def test_more_workers_than_devices_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [place.device for place in find_places("auto", None, 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [place.device for place in find_places("auto", None, 1)] == ["cuda:0"]
    assert [(place.device, place.threads) for place in find_places("cpu", 1, 2)] == [("cpu", 1), ("cpu", 1)]


def plan_only(arguments: tuple[str, ...]) -> None:
    """Plan a sweep in the working directory, for workers that are started by hand."""
    template = ("hydra/launcher=template", "hydra.launcher.gpus_per_worker=0")
    assert isinstance(run_job(prepare(read_arguments([*arguments, *template]))), Printed)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sdbatch", "worker", str(folder), "devices=cpu", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_tasks_share_a_sweep_and_one_closes_it(workspace: Path) -> None:
    recorded = [word for word in SLOW if word not in ("output.grid=false", "tracking=none")]
    plan_only((*recorded, "seed=range(0,64)", f"tracking.uri=sqlite:///{workspace / 'own.db'}"))
    tasks = [start(workspace / "sweep", f"index={index}", "workers=2") for index in range(2)]
    told = [task.communicate(timeout=90) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    check_exact(workspace / "sweep", 64)
    assert sum("64 of 64 are there" in out for out, _ in told) == 1
    assert (workspace / "sweep/grid.png").stat().st_size > 0
    assert (workspace / "own.db").stat().st_size > 0
    late = start(workspace / "sweep")
    late.communicate(timeout=60)
    assert late.returncode == 0
    assert not (workspace / "sweep/claims").exists()


def test_a_stopped_task_says_so_and_a_resume_joins_the_other(workspace: Path, sdbatch: Sdbatch) -> None:
    sweep = workspace / "sweep"
    plan_only((*SLOW, "seed=range(0,160)"))
    tasks = [start(sweep, f"index={index}", "workers=2") for index in range(2)]
    wait_for(lambda: made(sweep) >= 8, 60, "first images")
    tasks[0].terminate()
    tasks[0].communicate(timeout=60)
    assert tasks[0].returncode == 143
    joined = sdbatch("resume", "sweep", "hydra/launcher=local")
    assert joined.returncode == 0, joined.stderr
    assert "busy with it already; this joins them" in joined.stderr
    assert "160 of 160 are there" in joined.stdout
    tasks[1].communicate(timeout=60)
    assert tasks[1].returncode == 0
    check_exact(sweep, 160)


def test_a_batch_that_outlasts_the_grace_is_dropped_in_time_and_its_shard_is_free(workspace: Path) -> None:
    """Also when no step ends in which the worker could look: its supervisor ends it."""
    sweep = workspace / "sweep"
    plan_only((*REHEARSAL, "prompt=drill:hang", "seed=range(0,8)", "-m"))
    task = start(sweep)
    wait_for(lambda: list(iter_owners(sweep / "claims")), 60, "claim")
    asked_s = time.monotonic()
    task.terminate()
    wait_for(lambda: not list(iter_owners(sweep / "claims")), 60, "dropped batch")
    assert time.monotonic() - asked_s < 10
    task.communicate(timeout=60)
    assert task.returncode == 143


STEPS = 5
KILLED_AT = 19


def kill_in_the_making(sweep: Path) -> int:
    """Kill a worker within one of its batches; returns how many had ended three steps ago."""
    worker = start(sweep, "device=cpu", "index=0", "workers=1")
    assert worker.stdout is not None
    steps = (message for line in worker.stdout if isinstance(message := parse(line), Step))
    assert len(list(islice(steps, KILLED_AT))) == KILLED_AT
    worker.kill()
    made_steps = KILLED_AT + len(list(steps))  # a busy machine kills late
    worker.wait(timeout=30)
    return (made_steps - 3) // STEPS


def test_a_kill_costs_the_batch_in_the_making_and_no_more(workspace: Path) -> None:
    sweep = workspace / "sweep"
    plan_only((*REHEARSAL, "prompt=drill:slow", "seed=range(0,160)", "batch_size=4", f"steps={STEPS}", "-m"))
    assert kill_in_the_making(sweep) <= made(sweep) // 4


@pytest.mark.parametrize(("form", "is_shared"), [("webdataset", False), ("parquet", True)])
def test_a_kill_costs_no_block_of_what_is_packed(
    form: str, is_shared: bool, workspace: Path, sdbatch: Sdbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of the block that were made are found by the next worker, beside the folder; on another machine if it sees them."""
    sweep, place = workspace / "sweep", workspace / "place"
    for name in ("place", "one", "other"):
        (workspace / name).mkdir()
    shared = [f"paths.spool={place}"] if is_shared else []
    plan_only((*REHEARSAL, f"output={form}", "prompt=drill:slow", "seed=range(0,40)", "batch_size=4", f"steps={STEPS}", *shared, "-m"))
    monkeypatch.setenv("TMPDIR", str(workspace / "one" if is_shared else place))
    before = kill_in_the_making(sweep)
    assert made(sweep) == 0
    monkeypatch.setenv("TMPDIR", str(workspace / "other" if is_shared else place))
    told, _ = start(sweep, "device=cpu", "index=0", "workers=1").communicate(timeout=60)
    making = [message for line in told.splitlines() if isinstance(message := parse(line), Making)]
    assert 0 < len(making) <= 10 - before
    assert made(sweep) == 40
    assert not [path for path in place.rglob("*") if path.is_file()]
    sdbatch("resume", "sweep")
    check_exact(sweep, 40)


def test_what_a_worker_leaves_that_was_busy_before_is_made_here(workspace: Path, sdbatch: Sdbatch) -> None:
    """It holds a shard when the workers of the resume have made all else, and gives it back then."""
    plan_only((*REHEARSAL, "seed=range(0,64)", "batch_size=4", "-m"))
    code = "import sys, time; from pathlib import Path; from sdbatch.run.claim import Claims; claims = Claims(Path(sys.argv[1]), 'old')\n"
    code += "assert claims.take(0); print('held', flush=True); sys.stdin.readline(); time.sleep(1); claims.drop(0)"
    command = [sys.executable, "-c", code, str(workspace / "sweep/claims")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdin and old.stdout and old.stdout.readline() == "held\n"
        joined = subprocess.Popen(
            [sys.executable, "-m", "sdbatch", "resume", "sweep", "hydra/launcher=local"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        others = PlanFile(workspace / "sweep/plan.parquet").cells - len(PlanFile(workspace / "sweep/plan.parquet").shard(0))
        wait_for(lambda: made(workspace / "sweep") == others, 60, "all images but those of the shard that is held")
        old.stdin.write("\n")
        old.stdin.flush()
        told, errors = joined.communicate(timeout=90)
    assert joined.returncode == 0, errors
    assert "64 of 64 are there" in told
    check_exact(workspace / "sweep", 64)


def test_a_changed_plan_waits_for_workers_that_are_busy(workspace: Path, sdbatch: Sdbatch) -> None:
    sweep = workspace / "sweep"
    plan_only((*SLOW, "seed=range(0,960)"))
    task = start(sweep)
    wait_for(lambda: made(sweep) >= 4, 60, "first images")
    longer = sdbatch(*SLOW, "seed=range(0,961)")
    task.terminate()
    task.communicate(timeout=90)
    assert longer.returncode == 2
    assert "busy with another plan" in longer.stderr
    assert task.returncode == 143


def test_an_unplanned_folder_is_refused(workspace: Path, sdbatch: Sdbatch) -> None:
    refused = sdbatch("worker", "nothing")
    assert refused.returncode == 2
    assert "there is no sweep here" in refused.stderr
    assert "index=x: give a whole number" in sdbatch("worker", "nothing", "index=x").stderr


def test_local_workers_make_the_same_images(workspace: Path, sdbatch: Sdbatch) -> None:
    began_s = time.monotonic()
    done = sdbatch(*REHEARSAL, "seed=range(0,96)", "hydra.launcher.workers=2", "-m")
    assert done.returncode == 0, done.stderr
    assert "on cpu, cpu" in done.stderr
    assert time.monotonic() - began_s < 60
    check_exact(SweepFolder("sweep").path, 96)


def test_one_of_many_processes_projects_in_each_period_though_no_clocks_agree(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    now_s = 0.0

    def clock(ahead_s: float, speed: float) -> Callable[[], float]:
        return lambda: ahead_s + speed * now_s

    crowd = [Turns(folder, clock(1e6 * number, 1 + number / 1000)) for number in range(20)]
    assert not any(turns.take() for turns in crowd)
    folder.claims.mkdir()
    taken_s: list[float] = []
    while now_s < 20 * EVERY_S:
        now_s += 7.0
        if now_s % 1001 == 0:  # a worker ends, another begins
            crowd[int(now_s) % 20] = Turns(folder, clock(-now_s, 1.0))
        taken_s += [now_s for turns in crowd if turns.take()]
    assert 18 <= len(taken_s) <= 20
    assert min(after - before for before, after in pairwise(taken_s)) > 0.95 * EVERY_S
    assert len(list(folder.claims.iterdir())) == 1


def test_a_node_gets_a_password_by_its_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@server")
    assert node_uri(Settings("a", tracking_uri="http://***@server")) == "http://me:hunter2@server"
    assert node_uri(Settings("a", tracking_uri="http://other")) == "http://other"
