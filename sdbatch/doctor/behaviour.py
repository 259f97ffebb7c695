"""What the commit of a result stands on, tried out in a folder of its own."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from sdbatch.doctor.finding import Finding, fault, ok, warning

RENAMES = 100
"""A reader looks at a file while it is replaced so many times."""
SLOW_FSYNC_S = 0.5
"""A commit flushes about five times a block."""
ODD_NS = 1_600_000_000_123_456_789
"""A time stamp that no coarse clock can hold."""

FOLDER_TODO = "Choose a folder on a local disk, NFS 4, Lustre, GPFS or another POSIX file system."


def check_behaviour(probe: Path) -> Iterator[Finding]:
    """Try each behaviour in the empty folder `probe`."""
    for name, check in BEHAVIOURS.items():
        try:
            yield check(name, probe)
        except OSError as error:
            yield fault(name, f"{type(error).__name__}: {error.strerror or error}", FOLDER_TODO)


def check_exclusive(name: str, probe: Path) -> Finding:
    """A file is created by one of several that try."""
    path = probe / "exclusive"
    for expected in (True, False):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            created = True
        except FileExistsError:
            created = False
        if created != expected:
            return fault(name, "two processes can both create one file", FOLDER_TODO)
    return ok(name, "a file is created by one alone")


def check_rename(name: str, probe: Path) -> Finding:
    """Replacing a file leaves no moment in which it is missing or not whole."""
    final = probe / "renamed"
    final.write_bytes(_content(0))
    torn: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                data = final.read_bytes()
            except FileNotFoundError:
                torn.append("missing")
                continue
            if len(set(data)) != 1 or len(data) != len(_content(0)):
                torn.append("not whole")

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    try:
        for number in range(RENAMES):
            fresh = probe / "fresh"
            fresh.write_bytes(_content(number))
            fresh.replace(final)
    finally:
        over.set()
        reader.join()
    if torn:
        return fault(name, f"while a file was replaced, a reader found it {torn[0]}", FOLDER_TODO)
    return ok(name, "a file is replaced whole and at once")


def _content(number: int) -> bytes:
    return bytes([number % 256]) * 8192


def check_link(name: str, probe: Path) -> Finding:
    """A name is given only if it is free: how the first writer wins."""
    source, final = probe / "source", probe / "linked"
    source.write_bytes(b"first")
    try:
        os.link(source, final)
    except OSError as error:
        todo = "Nothing to do with one run a folder: results are then renamed after a look, and made twice at worst."
        return warning(name, f"no hard links here ({error.strerror})", todo)
    with suppress(FileExistsError):
        os.link(source, final)
        return fault(name, "a hard link replaces what is there", FOLDER_TODO)
    return ok(name, "hard links work, and take no name that is taken")


def check_fsync(name: str, probe: Path) -> Finding:
    """A file and its name can be flushed to the disk."""
    took_s: list[float] = []
    for _ in range(3):
        start_s = time.monotonic()
        for path, flags in ((probe / "flushed", os.O_WRONLY | os.O_CREAT), (probe, os.O_RDONLY)):
            handle = os.open(path, flags, 0o666)
            try:
                if flags != os.O_RDONLY:
                    os.write(handle, b"x" * 65536)
                os.fsync(handle)
            except OSError as error:
                return fault(name, f"{'a folder' if path == probe else 'a file'} cannot be flushed ({error.strerror})", FOLDER_TODO)
            finally:
                os.close(handle)
        took_s.append(time.monotonic() - start_s)
    middle_s = sorted(took_s)[1]
    if middle_s > SLOW_FSYNC_S:
        return warning(name, f"flushing a file takes {middle_s:.1f} s", "The disk is slow or busy; larger batches commit less often.")
    return ok(name, f"a file and its name are flushed in {middle_s * 1000:.2g} ms")


def check_lock(name: str, probe: Path) -> Finding:
    """Two runs on one folder are told apart."""
    first, second = (os.open(probe / "lock", os.O_RDWR | os.O_CREAT, 0o666) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fault(name, "two processes can hold one lock", "Start one run on a folder at a time.")
    except OSError as error:
        todo = "Start one run on a folder at a time: who has it is then told by a note alone."
        return warning(name, f"no file locks here ({error.strerror})", todo)
    finally:
        os.close(first)
        os.close(second)
    return ok(name, "one run at a time can lock the folder")


def check_stamps(name: str, probe: Path) -> Finding:
    """How finely changes of a file are dated."""
    path = probe / "stamped"
    path.touch()
    os.utime(path, ns=(ODD_NS, ODD_NS))
    lost_ns = abs(path.stat().st_mtime_ns - ODD_NS)
    if lost_ns >= 10_000_000:
        todo = "After replacing a weight file by another of the same size, wait two seconds before a run."
        return warning(name, f"files are dated to {lost_ns / 1e9:.1g} s only", todo)
    return ok(name, "files are dated finely enough to see every change")


BEHAVIOURS: dict[str, Callable[[str, Path], Finding]] = {
    "folder.exclusive": check_exclusive,
    "folder.rename": check_rename,
    "folder.link": check_link,
    "folder.fsync": check_fsync,
    "folder.lock": check_lock,
    "folder.stamps": check_stamps,
}
