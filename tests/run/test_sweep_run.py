"""Whole runs through the command line with the rehearsal engine: made, resumed, extended, stopped, killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from sdbatch.results.verify import verify
from tests.conftest import BASE, Sdbatch

REHEARSAL = (*BASE, "engine=rehearsal", "tracking=none", "output.grid=false", "out=sweep")


def images(folder: Path) -> dict[str, str]:
    """Image name -> SHA-256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "images").rglob("*.png"))}


def rows(folder: Path) -> list[dict[str, object]]:
    """Rows without what differs from run to run."""
    volatile = {"made_at", "host", "worker", "denoise_s", "encode_s", "decode_s", "attempts"}
    found = load_rows(SweepFolder(folder)).to_pylist()
    return sorted(
        ({key: value for key, value in row.items() if key not in volatile} for row in found), key=lambda row: str(row["image_id"])
    )


def test_files_of_the_working_directory_take_no_module_s_place(workspace: Path) -> None:
    for name in ("pyarrow", "mlflow", "random"):
        (workspace / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    command = [sys.executable, "-P", "-m", "sdbatch", *BASE, "engine=rehearsal", "out=sweep", "seed=1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "1 image made" in done.stdout, done.stdout + done.stderr
    assert "1 image in 1 run" in done.stdout


def test_a_sweep_is_made_once_and_extended_by_what_is_missing(workspace: Path, sdbatch: Sdbatch) -> None:
    first = sdbatch(*REHEARSAL, "lora=red,blue", "seed=range(0,5)", "-m")
    assert first.returncode == 0, first.stderr
    assert "10 images made" in first.stdout
    made = images(workspace / "sweep")
    again = sdbatch(*REHEARSAL, "lora=red,blue", "seed=range(0,5)", "-m")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    longer = sdbatch(*REHEARSAL, "lora=red,blue", "seed=range(0,7)", "-m")
    assert "4 images made" in longer.stdout
    both = images(workspace / "sweep")
    assert len(both) == 14
    assert made.items() <= both.items()
    assert sorted(set(pq.read_table(workspace / "sweep/plan.parquet")["shard"].to_pylist()))[0] == -1
    assert verify(SweepFolder(workspace / "sweep"), full=True).is_sound


def test_a_deleted_image_is_made_again_and_nothing_else(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "seed=range(0,6)", "-m", check=True)
    before = images(workspace / "sweep")
    victim = next(iter(before))
    (workspace / "sweep/images" / victim).unlink()
    status = sdbatch("status", "sweep")
    assert status.returncode == 1
    assert "5 of 6 images made" in status.stdout
    again = sdbatch("resume", "sweep")
    assert "1 image made" in again.stdout
    assert images(workspace / "sweep") == before
    assert len(rows(workspace / "sweep")) == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_what_an_undisturbed_one_makes(workspace: Path, sdbatch: Sdbatch, how: signal.Signals) -> None:
    sweep = [*REHEARSAL, "seed=range(0,24)", "batch_size=4", "prompt=drill:slow", "steps=8", "-m"]
    assert sdbatch(*sweep, "out=whole").returncode == 0
    driver = subprocess.Popen(
        [sys.executable, "-m", "sdbatch", *sweep], cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 60
    while len(list((workspace / "sweep/rows").glob("part-*"))) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    driver.send_signal(how)
    told, _ = driver.communicate(timeout=60)
    assert driver.returncode in (-how, 128 + how)
    if how != signal.SIGKILL:
        assert "Go on: sdbatch resume sweep" in told
    wait_until_no_worker(workspace / "sweep")
    partial = load_rows(SweepFolder(workspace / "sweep")).num_rows
    assert 0 < partial < 24
    resumed = sdbatch("resume", "sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert images(workspace / "sweep") == images(workspace / "whole")
    assert rows(workspace / "sweep") == rows(workspace / "whole")
    assert not list((workspace / "sweep").rglob(".tmp-*"))
    assert not (workspace / "sweep/claims").exists()


def wait_until_no_worker(folder: Path) -> None:
    """A worker whose driver is gone ends by itself; wait for that."""
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s:
        pids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        if not any(str(folder) in _command(pid) and "worker" in _command(pid) for pid in pids):
            return
        time.sleep(0.2)
    raise AssertionError("a worker outlived its driver")


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_cell_that_kills_its_worker_fails_alone(workspace: Path, sdbatch: Sdbatch) -> None:
    done = sdbatch(*REHEARSAL, "prompt=a fox,drill:crash,a cat,a dog", "batch_size=4", "-m")
    assert done.returncode == 1
    assert "3 images made" in done.stdout
    assert "1 failed" in done.stdout
    status = sdbatch("status", "sweep")
    assert status.returncode == 1
    assert "drill:crash" in status.stdout
    assert "its worker died 3 times" in status.stdout
    by_prompt = {row["prompt"]: row["status"] for row in rows(workspace / "sweep")}
    assert by_prompt == {"a fox": "ok", "a cat": "ok", "a dog": "ok", "drill:crash": "failed"}


def test_a_cell_that_raises_or_is_not_finite_is_failed_with_its_reason(workspace: Path, sdbatch: Sdbatch) -> None:
    done = sdbatch(*REHEARSAL, "prompt=a fox,drill:fail,drill:nan,drill:flat", "batch_size=4", "-m")
    assert done.returncode == 1
    found = {row["prompt"]: (row["status"], row["error"], row["image"] is None) for row in rows(workspace / "sweep")}
    assert found["a fox"][0] == "ok"
    assert found["drill:fail"] == ("failed", "the drill says that this cell fails", True)
    assert found["drill:nan"][0] == "nan"
    assert found["drill:nan"][2]
    assert found["drill:flat"][0] == "flat" and found["drill:flat"][1]
    assert not found["drill:flat"][2], "a picture of one colour is kept, and is no success"
    assert "3 failed" in done.stdout and "sdbatch status sweep" in done.stdout


def test_out_of_memory_halves_the_batch_and_records_it_or_fails_by_policy(workspace: Path, sdbatch: Sdbatch) -> None:
    halved = sdbatch(*REHEARSAL, "prompt=drill:oom", "seed=range(0,4)", "batch_size=4", "-m")
    assert halved.returncode == 0
    assert {row["batch_size"] for row in rows(workspace / "sweep")} == {1}
    failed = sdbatch(*REHEARSAL, "prompt=drill:oom", "seed=range(0,4)", "batch_size=4", "memory.on_oom=fail", "out=other", "-m")
    assert failed.returncode == 1
    assert all("out of memory with batch size 4" in str(row["error"]) for row in rows(workspace / "other"))


def test_two_runs_on_one_folder_are_told_apart(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "seed=1", check=True)
    folder = SweepFolder(workspace / "sweep")
    with folder.lock():
        second = sdbatch("resume", "sweep")
    assert second.returncode == 2
    assert "locked by" in second.stderr


def test_a_changed_weight_file_makes_other_images_and_keeps_the_old(workspace: Path, sdbatch: Sdbatch) -> None:
    from tests.conftest import write_weight

    sdbatch(*REHEARSAL, "lora=[red]", "seed=1", check=True)
    old = images(workspace / "sweep")
    write_weight(workspace / "models/loras/red.safetensors", "retrained")
    resumed = sdbatch("resume", "sweep")
    assert resumed.returncode == 2
    assert "lora=red" in resumed.stderr
    assert "has changed since the plan was made" in resumed.stderr
    sdbatch(*REHEARSAL, "lora=[red]", "seed=1", check=True)
    new = images(workspace / "sweep")
    assert old.items() < new.items()
    replay = sdbatch("replay", f"sweep/images/{next(iter(old))}")
    assert replay.returncode == 2
    assert "not the same as then: red" in replay.stderr


def test_replay_makes_the_same_bytes(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "lora=[red]", "seed=range(0,3)", "prompt='a ${x}, \"fox\"'", "-m", check=True)
    for name in images(workspace / "sweep"):
        replay = sdbatch("replay", f"sweep/images/{name}", "to=again.png")
        assert replay.returncode == 0, replay.stderr
        assert (workspace / "again.png").read_bytes() == (workspace / "sweep/images" / name).read_bytes()


def test_refusals_write_nothing_and_exit_2(workspace: Path, sdbatch: Sdbatch) -> None:
    refused = sdbatch(*REHEARSAL, "steps=0")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert not (workspace / "sweep").exists()
    (workspace / "sweep").mkdir()
    (workspace / "sweep/thesis.txt").write_text("mine")
    foreign = sdbatch(*REHEARSAL)
    assert foreign.returncode == 2
    assert "thesis.txt" in foreign.stderr
    assert sorted(path.name for path in (workspace / "sweep").iterdir()) == ["thesis.txt"]


def test_secrets_stay_out_of_everything_written(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "tracking.uri=http://me:hunter2@127.0.0.1:9", "seed=1", check=True)
    for path in (workspace / "sweep").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_sweep_json_says_what_scripts_need(workspace: Path, sdbatch: Sdbatch) -> None:
    sdbatch(*REHEARSAL, "seed=range(0,3)", "name=three", "-m", check=True)
    about = json.loads((workspace / "sweep/sweep.json").read_text())
    assert (about["name"], about["cells"], about["axes"]) == ("three", 3, {"seed": 3})
    assert about["versions"]["torch"]
    status = json.loads(sdbatch("status", "sweep", "json=true").stdout)
    assert (status["ok"], status["left"]) == (3, 0)
