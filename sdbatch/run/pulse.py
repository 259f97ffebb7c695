"""What a worker says while it can say nothing else: that the file system keeps it waiting, or that it still reads weights.

Its supervisor kills who is silent. A thread that touches no file speaks, so that a disk which answers after minutes is
told from a worker that hangs; what hangs within the engine stays silent.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sdbatch.run.beside import repeating
from sdbatch.run.message import Blocked, Loading, Reporter

PULSE_S = 2.0
TRICKLE_BYTES = 100_000
"""Less than this from one pulse to the next is no reading."""


class Pulse:
    """Speaks for a worker's main thread, which is at its folder unless it says that it is busy."""

    def __init__(self, reporter: Reporter, every_s: float = PULSE_S) -> None:
        self._reporter = reporter
        self._every_s = every_s
        self._blocked_since_s: float | None = time.monotonic()
        self._loading: str | None = None
        self._read_bytes = bytes_read()

    @contextmanager
    def busy(self) -> Generator[None]:
        """The main thread is not at the folder: with the engine, or with nothing to do."""
        self._blocked_since_s = None
        try:
            yield
        finally:
            self._blocked_since_s = time.monotonic()

    @contextmanager
    def loading(self, what: str) -> Generator[None]:
        """The engine reads weights: it lives as long as some of them arrive."""
        self._reporter.send(Loading(what))
        self._loading = what
        try:
            with self.busy():
                yield
        finally:
            self._loading = None

    def beating(self) -> AbstractContextManager[None]:
        """Speak until the block is left."""
        return repeating(self._beat, self._every_s, "sdbatch-pulse")

    def _beat(self) -> None:
        before, self._read_bytes = self._read_bytes, bytes_read()
        since_s, loading = self._blocked_since_s, self._loading
        if since_s is not None and (blocked_s := time.monotonic() - since_s) >= self._every_s:
            self._reporter.send(Blocked(round(blocked_s, 1)))
        elif loading is not None and self._read_bytes - before > TRICKLE_BYTES:
            self._reporter.send(Loading(loading))


def bytes_read() -> int:
    """What this process has read so far, from files and by pages of mapped ones; 0 where the system does not say."""
    with suppress(OSError):
        lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return sum(int(count) for name, count in lines if name in ("rchar", "read_bytes"))
    return 0
