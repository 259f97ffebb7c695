"""Sending rows to MLflow from a process of its own, while a sweep runs and at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from sdbatch.errors import FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.results.lock import holding
from sdbatch.run.child import Child
from sdbatch.run.claim import names_in
from sdbatch.run.lease import Clock
from sdbatch.run.settings import Settings
from sdbatch.run.supervisor import Tally, Watcher
from sdbatch.tracking.project import LOCK
from sdbatch.tracking.target import MASK

EVERY_S = 300.0
"""A long sweep shows itself in MLflow this often: a projection costs about two seconds of CPU, and up to ten requests."""
TURN = "tracking-"
"""Numbered files among the claims: who makes one projects once."""


def start_tracking(folder: SweepFolder, settings: Settings, uri: str | None, *, running: bool = False) -> subprocess.Popen[bytes]:
    """Start a projection. mlflow's import and a slow server cost the caller nothing."""
    command = [sys.executable, "-P", "-m", "sdbatch", "track", str(folder.path), f"experiment={settings.experiment}"]
    if running:
        command.append("running=true")
    # By the environment: a password in the URI must not show in the list of processes.
    environment = {**os.environ, **({"MLFLOW_TRACKING_URI": uri} if uri else {})}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def node_uri(settings: Settings) -> str | None:
    """The tracking server as a machine knows it that did not plan the sweep: a password comes by its environment only."""
    uri = settings.tracking_uri
    return os.environ.get("MLFLOW_TRACKING_URI") if uri is None or MASK in uri else uri


class Turns:
    """Who projects: however many work on a sweep, one of them once in each period.

    Who has seen the last turn unchanged for a period may make the next, and of several that try one does. Each goes by
    its own clock, so none need to agree.
    """

    def __init__(self, folder: SweepFolder, clock: Clock = time.monotonic) -> None:
        self._claims = folder.claims
        self._clock = clock
        self._seen, self._since_s = self._last(), clock()

    def take(self) -> bool:
        """Whether it is this process's turn now."""
        if self._clock() - self._since_s < EVERY_S:
            return False
        last = self._last()
        is_mine = last == self._seen and self._make(last + 1)
        self._seen, self._since_s = self._last(), self._clock()
        return is_mine

    def _last(self) -> int:
        return max((int(name.removeprefix(TURN)) for name in names_in(self._claims) if name.startswith(TURN)), default=0)

    def _make(self, number: int) -> bool:
        try:
            os.close(os.open(self._claims / f"{TURN}{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except OSError:
            return False  # another was faster, or the sweep has ended
        (self._claims / f"{TURN}{number - 1}").unlink(missing_ok=True)
        return True


def wait_for_tracking(folder: SweepFolder, limit_s: float = 120.0) -> None:
    """Let a projection end that another process began, so that the last one is not refused."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        with suppress(FolderError), holding(folder.path / LOCK):
            return
        time.sleep(1.0)


class Projecting(Watcher):
    """Another watcher, and a projection every few minutes."""

    def __init__(self, inner: Watcher, folder: SweepFolder, settings: Settings, uri: str | None) -> None:
        self.inner = inner
        self.folder, self.settings, self.uri = folder, settings, uri
        self._turns = Turns(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """Show, and start a projection when it is time and the last one has ended."""
        self.inner.show(tally, children)
        is_free = self._process is None or self._process.poll() is not None
        if self.settings.tracking == "none" or not is_free or not self._turns.take():
            return
        if self._process is not None:
            self._process.communicate()
        self._process = start_tracking(self.folder, self.settings, self.uri, running=True)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.inner.note(text)

    def close(self) -> None:
        """Wait for the last projection, which holds the lock that the final one needs."""
        if self._process is not None:
            self._process.communicate()
