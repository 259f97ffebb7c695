"""The file of a claim: who made it, and for how long it has been as it is, by the clock of whoever looks.

Nothing here compares two clocks: a file that changed was touched, whatever time it says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdbatch.results.disk import Process

Clock = Callable[[], float]
Signature = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a claim, as its file says."""

    worker: str
    process: Process | None
    """None: the file says nothing (yet)."""

    def __str__(self) -> str:
        return f"{self.worker}\n{self.process or ''}\n"

    @staticmethod
    def parse(text: str) -> Owner:
        """The owner that a claim names; one without a process for a claim that was cut short."""
        worker, _, rest = text.partition("\n")
        return Owner(worker, Process.parse(rest.strip()))

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be dead without a wait: a process of this machine that is gone."""
        return self.process is not None and self.process.is_here and not self.process.is_alive

    @property
    def is_elsewhere(self) -> bool:
        """Whether it takes a wait to know that it lives."""
        return self.process is None or not self.process.is_here


@dataclass(slots=True)
class Seen:
    """A file as it was last seen."""

    signature: Signature
    owner: Owner
    since_s: float
    """When it was first seen so, by the observer's clock."""


class Observer:
    """Files of others, watched."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, Seen] = {}

    def look(self, path: Path) -> Seen | None:
        """The file as it is, with the time since it is so; None when there is none."""
        try:
            signature = signature_of(path.stat())
            known = self._seen.get(path.name)
            if known is None or known.signature != signature:
                known = self._seen[path.name] = Seen(signature, Owner.parse(path.read_text()), self._clock())
        except FileNotFoundError:
            self._seen.pop(path.name, None)
            return None
        return known

    def age_s(self, seen: Seen) -> float:
        """For how long it is known to be so."""
        return self._clock() - seen.since_s


def signature_of(found: os.stat_result) -> Signature:
    """What a heartbeat or another owner changes."""
    return found.st_ino, found.st_mtime_ns


def create(path: Path) -> int:
    """Make a file that is not there, and its folder, and return it open. Raises FileExistsError: only one can."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        return os.open(path, flags, 0o666)
