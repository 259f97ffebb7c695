"""Stopping a worker: the first signal finishes the batch if that is quick, else drops it; committed work stays."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from types import FrameType

GRACE_S = 6.0
"""A batch that would take longer than this to finish is dropped."""


class Stopped(BaseException):
    """The worker was asked to stop. Not an Exception, so that no handler of failed cells catches it."""


@dataclass
class Stop:
    """Whether a stop was asked for, and how fast steps are."""

    signal_number: int = 0
    step_s: float = 0.0
    """Duration of the last denoising step."""
    _last: float = field(default=0.0, repr=False)

    def install(self) -> None:
        """Take SIGTERM, SIGINT and SIGUSR2 (what Slurm is told to send) as requests to stop."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal_number = self.signal_number or number

    @property
    def exit_code(self) -> int:
        """128 and the signal, as shells count."""
        return 128 + self.signal_number if self.signal_number else 0

    def check(self) -> None:
        """Between batches: raise Stopped if asked to stop."""
        if self.signal_number:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, in pieces, and raise Stopped soon after being asked to stop."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, 0.5))
        self.check()

    def at_step(self, done: int, total: int, now_s: float) -> None:
        """Within a batch: raise Stopped if asked to, and the rest of the batch takes longer than the grace."""
        if done > 1 and self._last:
            self.step_s = now_s - self._last
        self._last = now_s if done < total else 0.0
        if self.signal_number and (total - done) * self.step_s > GRACE_S:
            raise Stopped
