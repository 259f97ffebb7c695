"""Kill -9 before every file-system call of the commit path, and let every such call fail: nothing committed is wrong.

A small server holds the imports and forks a child for each try; strace attaches to the child, which then does its work
with one call replaced by a kill or an error. Which calls there are comes from an undisturbed run under strace.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sdbatch.results.block import PACKINGS
from sdbatch.results.commit import commit_block, commit_packed
from sdbatch.results.disk import TEMPORARY
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.schema import SCHEMA, VOLATILE
from sdbatch.results.upkeep import merge_parts, recover
from sdbatch.results.verify import verify
from sdbatch.results.writer import record
from tests.faults import program
from tests.mounts import disk_image, mounted_image
from tests.results.samples import ORIGIN, make_cell, make_picture

CALLS = "openat,write,fsync,rename,link,unlink,mkdir,ftruncate,pwrite64,flock"
"""All that change or open something; a kill before a close is a kill after the call before it."""
SEEDS = range(4)
IDS = [make_cell(seed).image_id for seed in SEEDS]

SERVER = """
import ctypes, os, signal, sys
from tests.faults.test_commit_path import WORK
for line in sys.stdin:
    work, path = line.split(" ", 1)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # let strace attach, which is not our parent
        os.kill(os.getpid(), signal.SIGSTOP)
        code = 1
        try:
            WORK[work](path.strip())
            code = 0
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    os.waitpid(child, os.WUNTRACED)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


def make(path: str) -> None:
    """A driver's whole work on a sweep of two blocks: begin or take up, make what is missing, count the result."""
    folder = SweepFolder(path)
    folder.create()
    with folder.lock():
        done = recover(folder).done
        for seeds in (SEEDS[:2], SEEDS[2:]):
            missing = [make_picture(seed) for seed in seeds if make_cell(seed).image_id not in done]
            if missing:
                rows, images = record(folder, ORIGIN, missing, room=20_000)
                commit_block(folder, (0, folder.next_block(0)), rows, images)
        folder.write_about({"images": len(committed(folder).done)})


def make_packed(path: str, form: str) -> None:
    """As `make`, one block with its images in one file."""
    folder = SweepFolder(path)
    folder.create()
    with folder.lock():
        done = recover(folder).done
        missing = [make_picture(seed) for seed in SEEDS if make_cell(seed).image_id not in done]
        if missing:
            rows, images = record(folder, ORIGIN, missing, room=20_000)
            by_id = {row["image_id"]: images[row["image"]] for row in rows}
            commit_packed(folder, (0, 0), rows, by_id, PACKINGS[form], room=20_000)
        folder.write_about({"images": len(committed(folder).done)})


def merge(path: str) -> None:
    """Merging parts, as at the end of a long sweep."""
    folder = SweepFolder(path)
    with folder.lock():
        merge_parts(folder)


WORK = {"make": make, "merge": merge, **{form: partial(make_packed, form=form) for form in PACKINGS}}


@dataclass(frozen=True)
class Result:
    """How a child ended."""

    signal: int
    code: int
    trace: str
    error: str


class Server:
    """Children that do a piece of work under strace."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._errors = (scratch / "errors").open("w+")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVER]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def run(self, work: str, path: Path, *options: str) -> Result:
        """Run a piece of work on a folder with these options of strace."""
        assert self._process.stdin and self._process.stdout
        self._errors.seek(0)
        self._errors.truncate()
        self._process.stdin.write(f"{work} {path}\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        trace = self._scratch / "trace"
        with subprocess.Popen(
            ["strace", "-qq", "-y", "-o", str(trace), "-e", f"trace={CALLS}", *options, "-p", str(child)], stderr=subprocess.PIPE, text=True
        ) as strace:
            deadline = time.monotonic() + 20
            while f"TracerPid:\t{strace.pid}" not in Path(f"/proc/{child}/status").read_text():
                if strace.poll() is not None or time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    self._process.stdout.readline()
                    pytest.skip(f"strace cannot attach here: {strace.stderr.read() if strace.stderr else ''}")
                time.sleep(0.002)
            os.kill(child, signal.SIGCONT)
            status = int(self._process.stdout.readline())
        self._errors.seek(0)
        return Result(os.WTERMSIG(status), os.WEXITSTATUS(status), trace.read_text(), self._errors.read())

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
        self._errors.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where that can be: the order of calls is tested here, and a busy disk's fsync is slow."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: apt-get install -y strace")
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """The undisturbed sweep."""
    folder = SweepFolder(tmp_path_factory.mktemp("clean") / "s")
    make(str(folder.path))
    return folder


def images_of(folder: SweepFolder) -> dict[str, bytes]:
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in folder.images.rglob("*") if path.is_file()}


def rows_of(folder: SweepFolder) -> list[dict[str, object]]:
    stable = [name for name in SCHEMA.names if name not in VOLATILE]
    return load_rows(folder, stable).sort_by("image_id").to_pylist()


def check_after_the_fault(folder: SweepFolder, clean: SweepFolder) -> None:
    """Each committed row has its whole image (I1, I2), no image has two rows (I3), plain readers open the rows."""
    report = verify(folder, full=True)
    assert report.is_sound, str(report)
    assert not report.foreign
    ids = [row["image_id"] for row in rows_of(folder)]
    assert len(ids) == len(set(ids))
    expected = images_of(clean)
    for path, data in images_of(folder).items():
        if not Path(path).name.startswith(TEMPORARY):
            assert data == expected[path], f"{path} is not whole"


def check_after_resume(folder: SweepFolder, clean: SweepFolder) -> None:
    """Everything is there once, equal to the undisturbed sweep (I4, I5), and nothing is left over (I6)."""
    assert committed(folder).done == set(IDS)
    assert images_of(folder) == images_of(clean)
    assert rows_of(folder) == rows_of(clean)
    assert not list(folder.path.rglob(f"{TEMPORARY}*"))
    assert folder.read_about()["images"] == len(IDS)


def calls_in(server: Server, work: str, folder: SweepFolder) -> list[tuple[str, int]]:
    """The calls of an undisturbed run that touch the folder, each with its number among all calls of its name."""
    result = server.run(work, folder.path)
    assert result.code == 0 and result.signal == 0, result.error
    seen: Counter[str] = Counter()
    calls: list[tuple[str, int]] = []
    for line in result.trace.splitlines():
        if found := re.match(r"(\w+)\(", line):
            seen[found[1]] += 1
            if str(folder.path) in line:
                calls.append((found[1], seen[found[1]]))
    return calls


def test_killed_before_every_call_and_resumed(server: Server, clean: SweepFolder, scratch: Path) -> None:
    calls = calls_in(server, "make", SweepFolder(scratch / "counted"))
    assert {"openat", "write", "fsync", "rename", "link", "unlink", "mkdir"} <= {call for call, _ in calls} and len(calls) > 60
    for call, number in calls:
        folder = SweepFolder(scratch / f"{call}-{number}")
        result = server.run("make", folder.path, "-e", f"inject={call}:signal=KILL:when={number}")
        assert result.signal == signal.SIGKILL, f"{call} {number}: {result}"
        if folder.path.exists():
            check_after_the_fault(folder, clean)
        make(str(folder.path))
        check_after_resume(folder, clean)


@pytest.mark.parametrize("form", list(PACKINGS))
def test_killed_before_every_call_of_a_packed_commit(form: str, server: Server, scratch: Path) -> None:
    clean = scratch / "clean"
    WORK[form](str(clean))
    calls = calls_in(server, form, SweepFolder(scratch / "counted"))
    assert len(calls) > 25
    for call, number in calls:
        path = scratch / f"{call}-{number}"
        result = server.run(form, path, "-e", f"inject={call}:signal=KILL:when={number}")
        assert result.signal == signal.SIGKILL, f"{call} {number}: {result}"
        if path.exists():
            program.check_sound(path)
        WORK[form](str(path))
        program.check_sound(path)
        assert committed(SweepFolder(path)).done == set(IDS)
        assert program.pictures(path) == program.pictures(clean)
        assert program.rows(path) == program.rows(clean)
        assert not list(path.rglob(f"{TEMPORARY}*"))


FAULTS = [
    ("write", "ENOSPC", "disk is full"),
    ("fsync", "EIO", "input/output error"),
    ("rename", "ESTALE", "network file system"),
    ("link", "EIO", "input/output error"),
    ("mkdir", "EROFS", "read-only"),
    ("link", "EDQUOT", "quota"),
    ("rename", "ENOSPC", "disk is full"),
]


@pytest.mark.parametrize(("call", "error", "words"), FAULTS)
def test_every_failing_call_stops_with_its_reason(
    call: str, error: str, words: str, server: Server, clean: SweepFolder, scratch: Path
) -> None:
    numbers = [number for name, number in calls_in(server, "make", SweepFolder(scratch / "counted")) if name == call]
    assert numbers
    for number in numbers:
        folder = SweepFolder(scratch / f"{number}")
        result = server.run("make", folder.path, "-e", f"inject={call}:error={error}:when={number}")
        assert (result.signal, result.code) == (0, 1), f"{call} {number} failed and was not noticed"
        assert result.error.startswith("FolderError: ") and words in result.error
        if folder.path.exists():
            check_after_the_fault(folder, clean)
        make(str(folder.path))
        check_after_resume(folder, clean)


def test_killed_before_every_call_of_a_merge(server: Server, clean: SweepFolder, scratch: Path) -> None:
    shutil.copytree(clean.path, scratch / "counted")
    calls = calls_in(server, "merge", SweepFolder(scratch / "counted"))
    assert len(calls) > 10
    for call, number in calls:
        folder = SweepFolder(scratch / f"{call}-{number}")
        shutil.copytree(clean.path, folder.path)
        result = server.run("merge", folder.path, "-e", f"inject={call}:signal=KILL:when={number}")
        assert result.signal == signal.SIGKILL, f"{call} {number}: {result}"
        assert rows_of(folder) == rows_of(clean)
        check_after_the_fault(folder, clean)
        make(str(folder.path))
        merge(str(folder.path))
        check_after_resume(folder, clean)
        assert len(folder.parts()) == len(clean.parts()) / 2


@pytest.mark.parametrize(("error", "words"), [("EMFILE", "too many open files"), ("EIO", "input/output error"), ("ESTALE", "network file")])
def test_rows_that_cannot_be_read_for_a_moment_are_not_put_aside(
    error: str, words: str, server: Server, clean: SweepFolder, scratch: Path
) -> None:
    """A whole sweep would be made again because of one `ulimit`."""
    folder = SweepFolder(scratch / "s")
    shutil.copytree(clean.path, folder.path)
    part = folder.parts()[0]
    trouble = [option for call in ("openat", "read") for option in ("-e", f"inject={call}:error={error}")]
    # -P: only calls on this file. -e trace comes last and counts: reading is not among the calls of the commit path.
    # -f: parts are read by threads.
    result = server.run("make", folder.path, "-f", "-P", str(part), "-e", "trace=openat,read", *trouble)
    assert (result.signal, result.code) == (0, 1), result
    assert words in result.error
    assert part.is_file()
    assert not folder.damaged.exists()
    make(str(folder.path))
    check_after_resume(folder, clean)


def test_short_writes_are_continued(clean: SweepFolder, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take less than it was given (a full pipe, a signal, a quota near its end)."""
    honest = os.write

    def some(handle: int, data: memoryview) -> int:
        return honest(handle, data[: max(1, len(data) // 3)])

    monkeypatch.setattr(os, "write", some)
    make(str(scratch / "s"))
    check_after_resume(SweepFolder(scratch / "s"), clean)


def test_what_is_committed_survives_a_loss_of_power(clean: SweepFolder, tmp_path: Path) -> None:
    """The disk as it is at the moment the work returns, without anything the system still holds in memory."""
    image, snapshot = tmp_path / "disk.img", tmp_path / "snapshot.img"
    with disk_image(image, tmp_path / "mount") as point:
        make(str(point / "s"))
        shutil.copyfile(image, snapshot)
    with mounted_image(snapshot, tmp_path / "mount") as point:
        check_after_resume(SweepFolder(point / "s"), clean)
