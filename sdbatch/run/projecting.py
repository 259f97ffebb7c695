"""Sending rows to MLflow from a process of its own, while a sweep runs and at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from sdbatch.results.folder import SweepFolder
from sdbatch.run.settings import Settings
from sdbatch.run.supervisor import Child, Tally, Watcher

EVERY_S = 300.0
"""A long sweep shows itself in MLflow this often: a projection costs about two seconds of CPU."""


def start_tracking(folder: SweepFolder, settings: Settings, uri: str | None, *, running: bool = False) -> subprocess.Popen[bytes]:
    """Start a projection. mlflow's import and a slow server cost the caller nothing."""
    command = [sys.executable, "-m", "sdbatch", "track", str(folder.path), f"experiment={settings.experiment}"]
    if running:
        command.append("running=true")
    # By the environment: a password in the URI must not show in the list of processes.
    environment = {**os.environ, **({"MLFLOW_TRACKING_URI": uri} if uri else {})}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


class Projecting(Watcher):
    """Another watcher, and a projection every few minutes."""

    def __init__(self, inner: Watcher, folder: SweepFolder, settings: Settings, uri: str | None) -> None:
        self.inner = inner
        self.folder, self.settings, self.uri = folder, settings, uri
        self._last_s = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """Show, and start a projection when it is time and the last one has ended."""
        self.inner.show(tally, children)
        is_free = self._process is None or self._process.poll() is not None
        if self.settings.tracking == "none" or not is_free or time.monotonic() - self._last_s < EVERY_S:
            return
        self._last_s = time.monotonic()
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
