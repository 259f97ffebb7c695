"""What a worker tells its supervisor: one JSON line each, on its standard output."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict, dataclass
from typing import IO, Any, get_args


@dataclass(frozen=True, slots=True)
class Loading:
    """A recipe is being brought into memory."""

    recipe: str


@dataclass(frozen=True, slots=True)
class Making:
    """A block is being made."""

    shard: int
    cells: list[str]
    """Image ids."""
    pixels: int
    """Of all its images: what a step's duration goes by."""


@dataclass(frozen=True, slots=True)
class Step:
    """A denoising step is done: the heartbeat."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Rows are committed."""

    made: int
    failed: int
    image_ids: list[str]


@dataclass(frozen=True, slots=True)
class Blocked:
    """The worker lives, and the file system of the sweep's folder keeps it waiting."""

    seconds: float
    """Since when."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker cannot go on, and neither would another: a message for the user."""

    error: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker ends by an error; another process may do better, or a worker on another device."""

    error: str
    is_final: bool = False
    """Whether no process can use this device."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker was asked to stop and makes nothing more; it commits what is made."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Nothing is free to make; the worker watches the last shards of others."""


@dataclass(frozen=True, slots=True)
class Idle:
    """No work is left for this worker."""


Message = Loading | Making | Step | Committed | Blocked | Refused | Broken | Leaving | Watching | Idle
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


class Reporter:
    """Sends messages. Safe from several threads; a supervisor that is gone is not an error here."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Write one line and flush it."""
        line = json.dumps([type(message).__name__, asdict(message)])
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                return


def parse(line: str) -> Message | None:
    """The message of a line; None for a line that is none (a library that prints)."""
    try:
        found: Any = json.loads(line)
        return KINDS[found[0]](**found[1])
    except (ValueError, KeyError, IndexError, TypeError):
        return None
