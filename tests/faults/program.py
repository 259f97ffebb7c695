"""The program as a user starts it, with test patterns in place of images, and what must hold of a sweep after any fault.

The invariants, by their numbers in the tests: I1 each committed row has its image, with the row's SHA-256; I2 no committed
image is unreadable; I3 no image twice; I4 after a resume the rows are the plan; I5 images and rows equal those of an
undisturbed sweep; I6 no temporary file is left; I7 the exit code is 0 exactly when all is made; I8 the last words say what
to do.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sdbatch.results.block import ImageReader
from sdbatch.results.disk import TEMPORARY
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import committed, load_rows
from sdbatch.results.schema import SCHEMA, VOLATILE
from sdbatch.results.verify import verify

QUIET = ("engine=rehearsal", "tracking=none", "output.grid=false", "steps=2", "width=64", "height=64", "batch_size=4")
"""A sweep of patterns that leaves images and rows alone."""
BY_CHANCE = {*VOLATILE, "batch_size", "batch_slot", "attempts"}
"""Columns that a crash may change: cells that were in flight when workers died are made one by one."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    told: str
    errors: str


PROGRAM = ("-m", "sdbatch")
EMPTY: Mapping[str, str] = MappingProxyType({})


def command(*arguments: str, program: Sequence[str] = PROGRAM) -> list[str]:
    """The program's command line."""
    return [sys.executable, *program, *arguments]


def impatient(**settings: object) -> tuple[str, str]:
    """A `program` whose supervisor has other limits: `child__HANG_S=3` for `child.HANG_S`."""
    changes = [f"{name.replace('__', '.')} = {value!r}" for name, value in settings.items()]
    imports = ["import sys", "from sdbatch.cli import main", "from sdbatch.run import child, supervisor"]
    return "-c", "\n".join([*imports, *changes, "sys.exit(main(sys.argv[1:]))"])


def environment(**more: str) -> dict[str, str]:
    """The tests' own, so that what runs is the package under test."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", **more}


def run(
    folder: Path,
    *arguments: str,
    before: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    timeout_s: float = 120,
    prepare: Callable[[], None] | None = None,
    variables: Mapping[str, str] = EMPTY,
) -> Ended:
    """Run the program to its end in a working folder; `before` is a program that runs it (strace), `prepare` runs in the child.

    `program`: what Python runs, for one that was given less patience; `variables`: more of its environment.
    """
    done = subprocess.run(
        [*before, *command(*arguments, program=program)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        preexec_fn=prepare,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def start(
    folder: Path,
    *arguments: str,
    program: Sequence[str] = PROGRAM,
    prepare: Callable[[], None] | None = None,
    variables: Mapping[str, str] = EMPTY,
) -> subprocess.Popen[str]:
    """Start the program in a working folder; `program`, `prepare` and `variables` as for `run`."""
    words, env = command(*arguments, program=program), environment(**variables)
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=prepare)


def kill(process: subprocess.Popen[str]) -> str:
    """Kill -9; returns what was said."""
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=60)[0]


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait for something that must happen."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)


def workers_of(folder: Path) -> list[int]:
    """Process ids of the workers of a sweep folder, whoever started them."""
    found: list[int] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"worker" in words and str(folder.absolute()).encode() in words:
                found.append(int(path.name))
    return found


def images(folder: Path) -> dict[str, str]:
    """Image file -> SHA-256."""
    found = (path for path in (folder / "images").rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def pictures(folder: Path) -> dict[str, str]:
    """Image id -> SHA-256 of its bytes, wherever the row says they are: in a file of their own, a tar, a Parquet file."""
    sweep = SweepFolder(folder)
    reader = ImageReader(sweep)
    table = load_rows(sweep, ["image_id", "image", "image_bytes", "image_offset"])
    return {row["image_id"]: hashlib.sha256(reader.read(row)).hexdigest() for row in table.to_pylist()}


def rows(folder: Path, but: Collection[str] = VOLATILE) -> list[dict[str, object]]:
    """Rows without the columns that differ from run to run."""
    stable = [name for name in SCHEMA.names if name not in but]
    return load_rows(SweepFolder(folder), stable).sort_by("image_id").to_pylist()


def check_sound(folder: Path) -> None:
    """I1, I2, I3: what is committed now is true."""
    report = verify(SweepFolder(folder), full=True)
    assert report.is_sound, str(report)
    ids = [row["image_id"] for row in rows(folder)]
    assert len(ids) == len(set(ids))


def check_whole(folder: Path, clean: Path, ended: Ended, but: Collection[str] = VOLATILE) -> None:
    """I1 to I7 of a sweep that has come to its end: exactly the undisturbed one."""
    assert ended.code == 0, ended.told + ended.errors
    check_sound(folder)
    assert images(folder) == images(clean)
    assert rows(folder, but) == rows(clean, but)
    assert committed(SweepFolder(folder)).done == committed(SweepFolder(clean)).done
    assert not list(folder.rglob(f"{TEMPORARY}*"))
    assert not (folder / "claims").exists()
