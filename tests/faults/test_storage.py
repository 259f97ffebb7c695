"""The whole program on file systems that fill up, turn read-only, lose power or refuse: clear words, nothing lost, resumable."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sdbatch.results.disk import TEMPORARY
from sdbatch.results.folder import SweepFolder
from sdbatch.run import roster
from sdbatch.run.launch import resume
from sdbatch.run.outcome import Outcome
from tests.faults.conftest import SEEDS, SLOW
from tests.faults.program import BY_CHANCE, QUIET, Ended, check_sound, check_whole, images, impatient, rows, run, start, until, workers_of
from tests.mounts import break_disk, disk_image, mend, mounted_image, remount, tmpfs

SWEEP = (*QUIET, SEEDS, "-m")


def check_stopped(ended: Ended, folder: Path, words: str) -> None:
    """A run that could not go on said why and what to do (I7, I8), and what it left is true (I1 to I3)."""
    told = ended.told + ended.errors
    assert ended.code in (1, 2), told
    assert "Traceback" not in told, told
    assert re.search(words, told), told
    if folder.exists():
        check_sound(folder)


@pytest.mark.parametrize(
    ("rooms", "words"),
    [
        ([f"size={kilobytes}k" for kilobytes in (24, 48, 68, 88, 108, 132, 8000)], r"the disk is full \(\d"),
        ([f"size=8m,nr_inodes={files}" for files in (4, 10, 14, 18, 24, 800)], "no inodes left"),
    ],
    ids=["space", "inodes"],
)
def test_whatever_the_disk_has_no_room_for_the_sweep_goes_on_when_there_is(
    tmp_path: Path, clean: Path, rooms: list[str], words: str
) -> None:
    """The room grows by little, so that the plan, the log, images and rows each meet a full disk."""
    made: list[int] = []
    ended = Ended(-1, "", "")
    with tmpfs(tmp_path / "m", rooms[0]) as point:
        for room in rooms:
            remount(point, room)
            ended = run(tmp_path, *SWEEP, f"out={point}/sweep")
            made.append(len(rows(point / "sweep")) if (point / "sweep").is_dir() else -1)
            if ended.code == 0:
                break
            check_stopped(ended, point / "sweep", words)
        check_whole(point / "sweep", clean, ended)
    assert made == sorted(made) and len({*made}) > 2, f"{made}: the disk was full before, while and after images were made"


def test_too_little_room_is_told_before_anything_is_made_and_forbids_nothing(tmp_path: Path) -> None:
    """Patterns take less than the pictures that are reckoned with."""
    with tmpfs(tmp_path / "m", "size=1m,nr_inodes=100") as point:
        large = (*QUIET, "width=512", "height=512", "seed=range(0,4)", f"out={point}/sweep", "-m")
        said = f"about 2 MB of images are to be written, and the file system of {point}/sweep has 1 MB free"
        planned = run(tmp_path, "plan", *large)
        assert planned.code == 0 and f"  warning  {said}" in planned.told
        assert not (point / "sweep").exists()
        made = run(tmp_path, *large)
        assert made.code == 0 and made.errors.index(f"warning: {said}") < made.errors.index("on cpu"), made.errors
        assert "warning" not in run(tmp_path, "plan", *large).told, "nothing is left to be written"
        (point / "filler").write_bytes(b"x" * 700_000)
        next((point / "sweep/images").glob("*.png")).unlink()
        again = run(tmp_path, "resume", str(point / "sweep"))
        assert again.code == 0 and f"warning: about 1 MB of images are to be written, and the file system of {point}/sweep" in again.errors
        (point / "filler").unlink()
        many = run(tmp_path, "plan", *QUIET, "seed=range(0,90)", f"out={point}/many", "-m").told
        assert re.search(r"warning  about \d+ files are to be written, and .*/many has room for \d\d more\. output=webdataset", many), many
        packed = run(tmp_path, "plan", *QUIET, "seed=range(0,90)", f"out={point}/many", "output=webdataset", "-m").told
        assert "warning" not in packed


def _obey_permissions() -> None:
    """What root does not: without this capability it may write only what is its own."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.parametrize("whose", ["a read-only file system", "another user's folder", "another user's sweep"])
def test_what_may_not_be_written_is_refused_and_left_as_it_is(tmp_path: Path, clean: Path, whose: str) -> None:
    with tmpfs(tmp_path / "m", "size=8m") as point:
        out = point / "sweep"
        if whose != "another user's folder":
            shutil.copytree(clean, out)
        if whose == "a read-only file system":
            remount(point, "ro")
        else:
            point.chmod(0o755)
            for path in (point, *point.rglob("*")):
                os.chown(path, 12345, 12345)
        before = {path: path.stat().st_mtime_ns for path in point.rglob("*")}
        for words in ((*SWEEP, f"out={out}", "guidance_scale=3"), ("resume", str(out))):
            ended = run(tmp_path, *words, prepare=_obey_permissions)
            assert ended.code == 2, ended.told + ended.errors
            why = "the file system is read-only|no permission to write there"
            told = "there is no sweep" if words[0] == "resume" and not before else why
            assert re.search(told, ended.errors) and "Traceback" not in ended.errors, ended.errors
        assert before == {path: path.stat().st_mtime_ns for path in point.rglob("*")}


def test_a_full_cache_or_temporary_folder_costs_no_image(tmp_path: Path, clean: Path) -> None:
    with tmpfs(tmp_path / "m", "size=8k") as point:
        (point / "filler").write_bytes(b"x" * 8192)
        ended = run(tmp_path, *SWEEP, "out=sweep", variables={"XDG_CACHE_HOME": str(point), "TMPDIR": str(point)})
        check_whole(tmp_path / "sweep", clean, ended)


@pytest.fixture
def resume_unwatched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Ended]:
    """`sdbatch resume` without its look of half a minute for workers elsewhere: a claim that was cut names no owner."""
    monkeypatch.setattr(roster, "tell_and_wait", int)

    def do(folder: Path) -> Ended:
        outcome = resume(folder)
        assert isinstance(outcome, Outcome)
        return Ended(outcome.exit_code, "", str(outcome.tally))

    return do


def test_a_disk_that_breaks_stops_the_run_and_the_rest_is_made_when_it_is_mended(
    tmp_path: Path, clean_slow: Path, resume_unwatched: Callable[[Path], Ended]
) -> None:
    image, point = tmp_path / "disk.img", tmp_path / "m"
    with disk_image(image, point):
        driver = start(tmp_path, *SLOW, f"out={point}/sweep")
        until(lambda: list((point / "sweep/rows").glob("part-*")))
        break_disk(point)
        told, _ = driver.communicate(timeout=120)
        assert driver.returncode == 1, told
        assert "Traceback" not in told, told
        assert re.search(r"the file system is read-only|input/output error", told), told
        until(lambda: not workers_of(point / "sweep"))
        check_sound(point / "sweep")
    mend(image)
    with mounted_image(image, point):
        check_whole(point / "sweep", clean_slow, resume_unwatched(point / "sweep"))


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def test_power_is_lost_at_any_moment_of_a_run(tmp_path: Path, clean_slow: Path, resume_unwatched: Callable[[Path], Ended]) -> None:
    """Copies of the disk while the program runs are what a loss of power would leave: nothing that was not flushed."""
    snapshots: list[Path] = []
    with disk_image(tmp_path / "disk.img", tmp_path / "m", megabytes=8) as point:
        driver = start(tmp_path, *SLOW, f"out={point}/sweep")
        for count in (0, 2):
            until(lambda least=count: len(list((point / "sweep/rows").glob("part-*"))) >= least and (point / "sweep/plan.parquet").exists())
            # Held still, since a copy takes a moment and a loss of power does not.
            held = [driver.pid, *workers_of(point / "sweep")]
            _signal(held, signal.SIGSTOP)
            snapshots.append(shutil.copyfile(tmp_path / "disk.img", tmp_path / f"snapshot-{count}.img"))
            _signal(held, signal.SIGCONT)
        driver.kill()
        driver.communicate()
        until(lambda: not workers_of(point / "sweep"))
    for snapshot in snapshots:
        with mounted_image(snapshot, tmp_path / "m") as point:
            folder = point / "sweep"
            if folder.exists() and SweepFolder(folder).is_sweep:
                check_sound(folder)
                finals = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".png", ".parquet")]
                assert all(path.stat().st_size for path in finals if not path.name.startswith(TEMPORARY)), "an empty file has a final name"
            # Without its settings (the last thing planned) a resume is refused, and the same command makes them again.
            is_planned = folder.exists() and "settings" in SweepFolder(folder).read_about()
            check_whole(folder, clean_slow, resume_unwatched(folder) if is_planned else run(tmp_path, *SLOW, f"out={folder}"))


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        (resource.RLIMIT_FSIZE, 6_000, "larger than the limit of this process|ulimit -f"),
        (resource.RLIMIT_NOFILE, 9, "too many open files|ulimit -n"),
    ],
    ids=["file size", "open files"],
)
def test_limits_of_the_process_stop_it_with_their_name(tmp_path: Path, clean: Path, limit: int, value: int, words: str) -> None:
    def prepare() -> None:
        resource.setrlimit(limit, (value, value))

    ended = run(tmp_path, *SWEEP, "out=sweep", prepare=prepare)
    check_stopped(ended, tmp_path / "sweep", f"(?i){words}")
    check_whole(tmp_path / "sweep", clean, run(tmp_path, *SWEEP, "out=sweep"))


def test_a_limit_on_memory_leaves_nothing_that_is_not_true(tmp_path: Path, clean: Path) -> None:
    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (500_000_000, 500_000_000))

    # Native libraries abort when they cannot start a thread, so there may be no words; now and then one waits for it for ever.
    driver = start(tmp_path, *SWEEP, "out=sweep", program=impatient(supervisor__BACKOFF_S=(0.0,)), prepare=prepare)
    with suppress(subprocess.TimeoutExpired):
        driver.communicate(timeout=45)
    driver.kill()
    assert driver.wait() != 0
    _signal(workers_of(tmp_path / "sweep"), signal.SIGKILL)
    until(lambda: not workers_of(tmp_path / "sweep"))
    check_whole(tmp_path / "sweep", clean, run(tmp_path, *SWEEP, "out=sweep"))


def test_what_a_user_or_the_disk_breaks_is_made_again_and_nothing_else(tmp_path: Path, clean: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(clean, folder)
    victims = sorted((folder / "images").rglob("*.png"))[:4]
    deleted, cut, emptied, flipped = victims
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*.png") if path not in victims}
    deleted.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    emptied.write_bytes(b"")
    flipped.write_bytes(_flipped(flipped.read_bytes()))
    (folder / "images/holiday.jpg").write_bytes(b"mine")
    (folder / "rows/notes.txt").write_text("mine")
    status = run(tmp_path, "status", "sweep")
    assert (status.code, "13 of 16 images made" in status.told) == (1, True), "a flipped bit is found by verify alone"
    found = run(tmp_path, "verify", "sweep", "full=true", "repair=true")
    assert found.code == 1
    assert all(path.name in found.told for path in victims)
    ended = run(tmp_path, "resume", "sweep")
    assert "4 images made" in ended.told
    assert (folder / "images/holiday.jpg").read_bytes() == b"mine"
    assert (folder / "rows/notes.txt").read_text() == "mine"
    for path in (folder / "images/holiday.jpg", folder / "rows/notes.txt"):
        path.unlink()
    check_whole(folder, clean, ended)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "what was whole was not touched"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "deleted"])
def test_a_damaged_part_is_put_aside_and_its_images_are_made_again(tmp_path: Path, clean: Path, damage: str) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(clean, folder)
    part = SweepFolder(folder).parts()[1]
    data = part.read_bytes()
    part.write_bytes({"cut": data[:-9], "flipped": _flipped(data), "empty": b"", "deleted": b""}[damage])
    if damage == "deleted":
        part.unlink()
    ended = run(tmp_path, "resume", "sweep")
    assert "4 images made" in ended.told
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    check_whole(folder, clean, ended)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def test_a_damaged_plan_is_made_again_by_the_same_command_and_refused_by_resume(tmp_path: Path, clean: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(clean, folder)
    sorted((folder / "images").rglob("*.png"))[0].unlink()
    (folder / "plan.parquet").write_bytes((folder / "plan.parquet").read_bytes()[:200])
    refused = run(tmp_path, "resume", "sweep")
    assert refused.code == 2
    assert "plan.parquet" in refused.errors and "Traceback" not in refused.errors
    # What is left over is planned anew, so in another batch.
    check_whole(folder, clean, run(tmp_path, *SWEEP, "out=sweep"), but=BY_CHANCE)


def test_other_settings_into_the_same_folder_add_and_never_mix(tmp_path: Path, clean: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(clean, folder)
    changed = run(tmp_path, *SWEEP, "out=sweep", "guidance_scale=3.5")
    assert changed.code == 0
    both = images(folder)
    assert images(clean).items() < both.items()
    assert len(both) == 32
    assert {row["guidance_scale"] for row in rows(folder)} == {row["guidance_scale"] for row in rows(clean)} | {3.5}
    again = run(tmp_path, *SWEEP, "out=sweep")
    assert "nothing to do" in again.told


@pytest.mark.parametrize("again", [("resume", "sweep"), (*SWEEP, "out=sweep")], ids=["resume", "the same command"])
def test_another_version_goes_on_and_says_so(tmp_path: Path, clean: Path, again: tuple[str, ...]) -> None:
    folder = SweepFolder(shutil.copytree(clean, tmp_path / "sweep"))
    about = folder.read_about()
    folder.write_about({**about, "versions": {**about["versions"], "torch": "1.0", "mlflow": "1.0"}})
    sorted(folder.images.glob("*.png"))[0].unlink()
    ended = run(tmp_path, *again)
    assert re.search(r"sweep: was begun with torch 1\.0, now \S+\. Images made from now on may differ", ended.errors), ended.errors
    assert folder.read_about()["versions"] == about["versions"]
    check_whole(folder.path, clean, ended)
    assert "begun with" not in run(tmp_path, *again).errors


def test_a_second_run_on_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path, clean_slow: Path) -> None:
    first = start(tmp_path, *SLOW, "out=sweep")
    until(lambda: list((tmp_path / "sweep/rows").glob("part-*")))
    # Stopped is not gone: a lock that ages would be taken over here.
    first.send_signal(signal.SIGSTOP)
    for second in (run(tmp_path, *SLOW, "out=sweep"), run(tmp_path, "resume", "sweep")):
        assert second.code == 2
        assert re.search(rf"locked by \S+:{first.pid} since \d{{4}}-", second.errors), second.errors
    first.kill()
    first.communicate()
    check_whole(tmp_path / "sweep", clean_slow, run(tmp_path, "resume", "sweep"))
