"""One driver per sweep folder: a lock that the system frees when its owner dies, and that says who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sdbatch.errors import FolderError
from sdbatch.results.disk import explained, is_alive, start_of

LOCK = ".lock"
"""Name of the lock file. It stays after the sweep: deleting a file that others may be locking is a race."""


@contextmanager
def holding(path: Path) -> Generator[None]:
    """Hold the lock file at `path`.

    Raises: FolderError when another process holds it, with the owner's host, process and since when.
    """
    with explained("cannot lock", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _take(handle):
            raise FolderError(f"{path.parent}: locked by {_owner(path)}. Wait for it or stop it; or choose another folder with out=.")
        mine = f"{socket.gethostname()}:{os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        with explained("cannot lock", path):
            os.truncate(handle, 0)
            os.pwrite(handle, f"{mine}\n{start_of(os.getpid())}\n".encode(), 0)
        yield
        os.truncate(handle, 0)
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        # Some network file systems know no locks: the owner's note is then all there is to go by.
        return not _note_is_alive(os.pread(handle, 4096, 0).decode(errors="replace"))
    return True


def _note_is_alive(note: str) -> bool:
    owner, _, start = note.partition("\n")
    host, _, pid = owner.split(" ")[0].rpartition(":")
    if not pid.isdigit():
        return False
    return host != socket.gethostname() or is_alive(int(pid), start.strip() or "0")


def _owner(path: Path) -> str:
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return "another process"
