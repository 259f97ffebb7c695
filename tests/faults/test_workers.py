"""Workers and drivers that die, hang or are stopped, and the machine that runs out of memory."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import load_rows
from tests.conftest import BASE, write_weight
from tests.faults.conftest import SEEDS, SLOW
from tests.faults.program import (
    BY_CHANCE,
    QUIET,
    Ended,
    check_sound,
    check_whole,
    environment,
    images,
    impatient,
    pictures,
    rows,
    run,
    start,
    until,
    workers_of,
)

KILLS = 50
CELLS = 480
CHAOS = (*QUIET, "prompt=drill:slow", "hydra.launcher.workers=4", "memory.threads=1", "out=sweep", "-m")


def committed_blocks(folder: Path) -> int:
    """Blocks whose rows are there now, by their names: a look at the rows would take longer than a block does."""
    return len(SweepFolder(folder).parts())


class Chaos:
    """A sweep of four workers that are killed at random, and their driver now and then."""

    def __init__(self, folder: Path, sweep: tuple[str, ...]) -> None:
        self.folder, self.sweep = folder, sweep
        self.random = random.Random(KILLS)
        self.driver = start(folder, *sweep)
        self.kills = 0
        self.at = 0

    def run(self, kills: int) -> None:
        """Kill so many times, each after some progress, while there is anything left to make."""
        sweep = self.folder / "sweep"
        while self.kills < kills:
            until(lambda: committed_blocks(sweep) > self.at or self.driver.poll() is not None, timeout_s=180)
            self.at = committed_blocks(sweep)
            time.sleep(self.random.random() * 0.3)
            if self.driver.poll() == 0:
                return
            if self.driver.poll() is not None:
                self.driver = start(self.folder, *self.sweep)
            elif self.random.random() < 0.2:
                self.driver.kill()
                self.driver.communicate()
                # At once, while the workers of the last one may still be there.
                self.driver = start(self.folder, *self.sweep)
            elif workers := workers_of(sweep):
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(workers), signal.SIGKILL)
            self.kills += 1

    def close(self) -> None:
        """Nothing stays behind."""
        self.driver.kill()
        for worker in workers_of(self.folder / "sweep"):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def finish(folder: Path, driver: subprocess.Popen[str]) -> Ended:
    """Let the last driver end; then resume until all is made, as a user would."""
    told, _ = driver.communicate(timeout=300)
    ended = Ended(driver.returncode, told, "")
    for _ in range(3):
        if ended.code == 0:
            break
        ended = run(folder, "resume", "sweep")
    return ended


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chaos must end as; the drill is part of the prompt, so its pauses are spread over eight workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(folder, *CHAOS, f"seed=range(0,{CELLS})", "hydra.launcher.workers=8")
    assert ended.code == 0, ended.errors
    return folder / "sweep"


@pytest.mark.parametrize(("packed", "kills", "cells"), [("files", KILLS, CELLS), ("webdataset", 6, 256), ("parquet", 6, 256)])
def test_kills_at_random_moments_lose_nothing_and_make_nothing_twice(
    tmp_path: Path, undisturbed: Path, packed: str, kills: int, cells: int
) -> None:
    sweep = (*CHAOS, f"seed=range(0,{cells})", f"output.format={packed}")
    chaos = Chaos(tmp_path, sweep)
    try:
        chaos.run(kills)
        ended = finish(tmp_path, chaos.driver)
    finally:
        chaos.close()
    assert ended.code == 0, ended.told + ended.errors
    assert chaos.kills > kills / 2, "the sweep was too short"
    folder = tmp_path / "sweep"
    check_sound(folder)
    made = pictures(folder)
    assert len(made) == cells
    assert made.items() <= pictures(undisturbed).items()
    places = {*BY_CHANCE, "image", "image_offset"}
    assert rows(folder, places) == [row for row in rows(undisturbed, places) if row["image_id"] in made]
    if packed == "files":
        check_whole(folder, undisturbed, ended, but=BY_CHANCE)
    assert "nothing to do" in run(tmp_path, *sweep).told


def test_a_new_driver_takes_over_at_once_from_one_that_was_killed(tmp_path: Path) -> None:
    """Its workers commit what they have and leave; what they made meanwhile counts."""
    sweep = (*QUIET, "seed=range(0,24)", "prompt=drill:slow", "steps=6", "out=sweep", "-m")
    driver = start(tmp_path, *sweep)
    until(lambda: committed_blocks(tmp_path / "sweep"))
    driver.kill()
    driver.communicate()
    ended = run(tmp_path, *sweep)
    assert ended.code == 0, ended.told
    assert "left" not in ended.told
    assert "24 of 24 are there" in ended.told
    check_sound(tmp_path / "sweep")
    assert len(images(tmp_path / "sweep")) == 24


@pytest.mark.parametrize("numbers", [[signal.SIGHUP], [signal.SIGINT, signal.SIGINT], [signal.SIGUSR2]], ids=["hangup", "twice", "usr2"])
def test_however_a_run_is_stopped_the_rest_is_made_by_a_resume(tmp_path: Path, clean: Path, numbers: list[signal.Signals]) -> None:
    sweep = (*QUIET, SEEDS, "out=sweep", "-m")
    driver = start(tmp_path, *sweep)
    until(lambda: workers_of(tmp_path / "sweep"))
    for number in numbers:
        driver.send_signal(number)
        time.sleep(0.05)
    told, _ = driver.communicate(timeout=60)
    assert "Traceback" not in told
    if driver.returncode != 0:
        assert driver.returncode in (-numbers[0], 128 + numbers[0])
    until(lambda: not workers_of(tmp_path / "sweep"))
    check_sound(tmp_path / "sweep")
    check_whole(tmp_path / "sweep", clean, run(tmp_path, "resume", "sweep"))


def test_one_worker_or_four_make_the_same(tmp_path: Path) -> None:
    sweep = (*QUIET, "seed=range(0,128)", "memory.threads=1", "-m")
    assert run(tmp_path, *sweep, "out=one").code == 0
    check_whole(tmp_path / "four", tmp_path / "one", run(tmp_path, *sweep, "out=four", "hydra.launcher.workers=4"))
    assert len(set(load_rows(SweepFolder(tmp_path / "four"), ["worker"])["worker"].to_pylist())) > 1


def test_a_worker_that_stands_still_is_killed_and_its_images_are_made_by_the_next(tmp_path: Path, clean_slow: Path) -> None:
    """Stopped, it answers to no signal but the one that kills."""
    driver = start(tmp_path, *SLOW, "out=sweep", program=impatient(child__HANG_S=4.0))
    until(lambda: committed_blocks(tmp_path / "sweep"))
    (worker,) = workers_of(tmp_path / "sweep")
    os.kill(worker, signal.SIGSTOP)
    told, _ = driver.communicate(timeout=120)
    assert re.search(r"worker-0 \(cpu\) has said nothing for \d+ s while (step|denoising) \S+: killing it", told), told
    assert "worker-0 (cpu) died: killed, since it said nothing" in told
    check_whole(tmp_path / "sweep", clean_slow, Ended(driver.returncode, told, ""), but=BY_CHANCE)


def test_a_broken_cuda_context_is_left_with_its_process_and_the_other_images_are_made(tmp_path: Path) -> None:
    """In the process that had the error no later batch works: only a new one makes the others."""
    prompts = "prompt=a fox,drill:sticky,a cat,a dog,an owl,a hen,a cow,a pig"
    ended = run(tmp_path, *QUIET, prompts, "out=sweep", "-m", program=impatient(supervisor__BACKOFF_S=(0.0,)))
    assert ended.code == 1
    assert "7 images made" in ended.told and "1 failed" in ended.told, "and the last words say what to do: `sdbatch status`"
    cause = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert f"worker-0 (cpu) died: {cause}. Restarting it." in ended.errors
    check_sound(tmp_path / "sweep")
    found = {row["prompt"]: (row["status"], row["error"]) for row in load_rows(SweepFolder(tmp_path / "sweep")).to_pylist()}
    assert found.pop("drill:sticky") == ("failed", f"its worker died 3 times while making it, the last time alone in its batch: {cause}")
    assert len(found) == 7 and set(found.values()) == {("ok", None)}


@pytest.mark.parametrize(
    "limits", [{"supervisor__BACKOFF_S": (0.0,), "supervisor__QUARANTINE_CRASHES": 2}, {}], ids=["given up", "waiting"]
)
def test_one_device_that_never_works_costs_no_image_and_no_time(tmp_path: Path, clean: Path, limits: dict[str, object]) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'index=1' in sys.orig_argv: os.abort()\n")
    broken = {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    sweep = (*QUIET, "seed=range(0,48)", "hydra.launcher.workers=2", "out=sweep", "-m")
    ended = run(tmp_path, *sweep, program=impatient(**limits), variables=broken)
    assert ended.code == 0, ended.errors
    check_sound(tmp_path / "sweep")
    made = images(tmp_path / "sweep")
    assert len(made) == 48 and images(clean).items() <= made.items()
    assert "worker-1 (cpu) died: SIGABRT" in ended.errors
    if limits:
        assert "2 times in a row without an image: this device is given up" in ended.errors
    else:
        assert ended.errors.count("died") < 6, "it was waited for though nothing was left to make"


def test_weights_that_change_while_the_sweep_runs_fail_their_images_and_no_others(workspace: Path) -> None:
    sweep = (*BASE, *QUIET, "lora=red,blue", "seed=range(0,16)", "prompt=drill:slow", "steps=4", "out=sweep", "-m")
    driver = start(workspace, *sweep)
    folder = SweepFolder(workspace / "sweep")
    until(folder.parts)
    (first,) = {row["loras"][0]["name"] for row in load_rows(folder, ["loras"]).to_pylist()}
    second = {"red": "blue", "blue": "red"}[first]
    write_weight(workspace / f"models/loras/{second}.safetensors", "trained again")
    told, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1 and "16 images made" in told and "16 failed" in told, told
    check_sound(folder.path)
    for row in load_rows(folder, ["loras", "status", "error"]).to_pylist():
        if row["loras"][0]["name"] == first:
            assert row["status"] == "ok"
        else:
            assert (
                row["status"] == "failed" and f"lora.{second}: " in row["error"] and "has changed since the plan was made" in row["error"]
            )


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_group() -> Generator[Path]:
    """A control group whose processes have 600 MB together."""
    group = MEMORY / f"sdbatch-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("600M")
    except OSError as error:
        pytest.skip(f"no memory control group (version 1) can be made here: {error}")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_worker_killed_for_memory_is_told_so_and_the_other_images_are_made(tmp_path: Path, memory_group: Path) -> None:
    def join() -> None:
        (memory_group / "cgroup.procs").write_text(str(os.getpid()))

    sizes = "matrix.list=[{seed:1},{seed:2},{seed:3},{width:8192,height:8192}]"
    sweep = [*QUIET, sizes, "batch_size=1", "out=sweep", "-m"]
    ended = run(tmp_path, *sweep, prepare=join)
    assert ended.code == 1, ended.told
    assert "SIGKILL (probably out of memory" in ended.errors
    check_sound(tmp_path / "sweep")
    found = [(row["width"], row["status"]) for row in load_rows(SweepFolder(tmp_path / "sweep")).to_pylist()]
    assert sorted(found) == [(64, "ok"), (64, "ok"), (64, "ok"), (8192, "failed")]
    assert re.search(r"its worker died 3 times", run(tmp_path, "status", "sweep").told)
