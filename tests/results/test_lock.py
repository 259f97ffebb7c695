from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sdbatch.errors import FolderError
from sdbatch.results.disk import start_of
from sdbatch.results.lock import holding


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that knows no locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_note_of_the_owner_decides(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holding(path), pytest.raises(FolderError, match=rf"locked by \S+:{os.getpid()} since"), holding(path):
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        dead = process.pid
    here = socket.gethostname()
    for free in ("", "nonsense", f"{here}:{dead} since yesterday\n0\n", f"{here}:{os.getpid()} since yesterday\n1\n"):
        path.write_text(free)
        with holding(path):
            assert path.read_text().splitlines()[1] == start_of(os.getpid())
    path.write_text("elsewhere:1 since yesterday\n1\n")
    with pytest.raises(FolderError, match="locked by elsewhere:1 since yesterday"), holding(path):
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), holding(tmp_path / ".lock"):
            raise KeyboardInterrupt
    with holding(tmp_path / ".lock"):
        pass
