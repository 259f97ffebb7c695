"""A line that tells how far a long write is, and what a signal does to it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

REFRESH_S = 0.1


class Progress:
    """Bytes written so far, on one line of a terminal; nothing where standard error is a file."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self.shown = 0.0
        self.done = 0
        self.is_terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show it, ten times a second at most."""
        self.done = done
        now = time.monotonic()
        if self.is_terminal and (now - self.shown > REFRESH_S or done == total):
            self.shown = now
            speed = done / max(now - self.started, 1e-6)
            sys.stderr.write(f"\r\x1b[K{self.what}: {done / max(total, 1):.0%} of {total / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s")
            sys.stderr.flush()

    def finish(self) -> str:
        """End the line; what was written, and how fast."""
        if self.is_terminal:
            sys.stderr.write("\r\x1b[K")
        return f"{self.done / 1e6:.1f} MB in {time.monotonic() - self.started:.1f} s"


@contextmanager
def ended_by_signals() -> Generator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that what was half written is removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
