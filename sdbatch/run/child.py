"""A worker process as its supervisor sees it: what it does, and for how long it may be silent."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass, field

from sdbatch.run.device import Place
from sdbatch.run.message import Blocked, Broken, Committed, Idle, Leaving, Loading, Making, Message, Step, Watching

HANG_S = 60.0
"""A worker that denoises and says nothing for this long, or for HANG_STEPS, hangs. One that waits for the disk says so."""
HANG_STEPS = 20
LOADING_HANG_S = 900.0
"""The same while it loads weights and none arrive, and before its first step, when nothing is known of its pace."""
WORDS: dict[type[Message], str] = {
    Watching: "waiting for the last shards of other workers",
    Leaving: "committing what is made",
    Idle: "done",
}


@dataclass
class Child:
    """The worker of one place, whichever process it is by now."""

    place: Place
    process: subprocess.Popen[str] | None = None
    listener: threading.Thread | None = None
    doing: str = "starting"
    in_flight: dict[str, None] = field(default_factory=dict[str, None])
    """Images that it makes and has not committed."""
    loading: bool = True
    heard_s: float = 0.0
    stepped_s: float = 0.0
    """When its last step ended, or its batch began."""
    pixels: int = 0
    """Of the batch it makes."""
    pixel_s: float = 0.0
    """A step's duration for each of them; 0 until the device has made one."""
    blocked_s: float = 0.0
    """For how long the file system has kept it waiting."""
    last_words: str = ""
    """What it ended by, where that is known."""
    is_hopeless: bool = False
    """Whether no process can use its device."""
    crashes: int = 0
    """In a row, without an image in between."""
    restart_at_s: float | None = None
    leaving: bool = False
    """Whether it only commits what is made."""
    over: bool = False

    @property
    def name(self) -> str:
        """As notes call it."""
        return f"{self.place.name} ({self.place.device})"

    @property
    def patience_s(self) -> float:
        """After so long a silence it hangs."""
        if self.loading or not self.pixel_s:
            return LOADING_HANG_S
        return max(HANG_S, HANG_STEPS * self.pixel_s * self.pixels)

    def begin(self, process: subprocess.Popen[str]) -> None:
        """It is this process from now on."""
        self.process = process
        self.doing, self.loading, self.heard_s = "starting", True, time.monotonic()
        self.last_words, self.restart_at_s, self.leaving = "", None, False

    def hear(self, message: Message) -> None:
        """Take down what it says of itself."""
        now_s = time.monotonic()
        match message:
            case Loading(recipe):
                self.doing, self.loading = f"loading {recipe}", True
            case Making(_, cells, pixels):
                self.doing, self.loading = f"denoising {len(cells)}", False
                self.stepped_s, self.pixels = now_s, pixels
                self.in_flight.update(dict.fromkeys(cells))
            case Step(done, total):
                self.doing = f"step {done}/{total}"
                self.pixel_s, self.stepped_s = (now_s - self.stepped_s) / self.pixels, now_s
            case Committed(image_ids=image_ids):
                self.crashes = 0
                for image_id in image_ids:
                    self.in_flight.pop(image_id, None)
            case Blocked(seconds):
                self.doing, self.blocked_s = f"waiting for the file system for {seconds:.0f} s", seconds
            case Broken(error, is_final):
                self.last_words, self.is_hopeless = error, is_final
            case Watching() | Leaving() | Idle():
                self.doing, self.leaving = WORDS[type(message)], isinstance(message, Leaving)
            case _:
                pass
        self.heard_s = now_s
