"""Keep one worker process per device alive: heartbeat, restart with backoff, blame for crashes, and stopping."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from sdbatch.results.folder import SweepFolder
from sdbatch.run import roster
from sdbatch.run.child import Child
from sdbatch.run.crash import Crashes
from sdbatch.run.device import Place, environment
from sdbatch.run.message import Blocked, Committed, Loading, Making, Message, Refused, parse

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks for a stop; SIGUSR2 is Slurm's warning before a time limit, as submitit has it sent."""
BLOCKED_S = 60.0
"""A user is told of a worker that has waited for the file system for this long."""
GRACE_S = 8.0
"""A worker that was asked to stop and still makes something after so long is killed: schedulers kill all of it after ten."""
STOP_S = 30.0
"""The same for one that commits what is made, where nobody else puts an end to it."""
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
QUARANTINE_CRASHES = 6
"""A device whose workers die this often without one image in between is given up."""


@dataclass
class Tally:
    """What has happened so far."""

    total: int
    """Cells to make in this run."""
    made: int = 0
    failed: int = 0
    started_s: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list[str])
    error: str | None = None
    signal_number: int = 0
    had_work: bool = False
    """Whether a worker began something, if only to load weights."""

    @property
    def is_all_tried(self) -> bool:
        """Whether nothing is left to make; never for a task that knows only what it made itself."""
        return 0 < self.total <= self.made + self.failed

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return (self.made + self.failed) / max(time.monotonic() - self.started_s, 1e-6)


class Watcher:
    """Is shown the state whenever it changes (the progress display)."""

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """Show it."""

    def note(self, text: str) -> None:
        """Something a user should know: a crash, a restart."""


class Supervisor:
    """Runs the workers of one sweep folder until all work is done."""

    def __init__(self, folder: SweepFolder, places: Sequence[Place], total: int, watcher: Watcher, log: IO[str]) -> None:
        """`log` takes what the workers and their libraries print."""
        self.folder = folder
        self.children = [Child(place) for place in places]
        self.tally = Tally(total)
        self.watcher = watcher
        self._heard: queue.Queue[tuple[Child, subprocess.Popen[str], Message | None]] = queue.Queue()
        self._stop_since_s: float | None = None
        self._log = log

    def run(self) -> Tally:
        """Run to the end, or until a signal or a fault stops it."""
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        # An engine's task starts with them blocked, so that one that comes early waits for its handler.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            for child in self.children:
                self._start(child)
            while not all(child.over for child in self.children):
                self._turn()
        finally:
            self._kill(self.children)
            for child in self.children:
                if child.listener is not None:
                    child.listener.join(timeout=5.0)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.tally

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if self._stop_since_s is not None:
            # A second Ctrl-C means now. Engines repeat their signals, and mean as before.
            if number == signal.SIGINT:
                self._kill(self.children)
            return
        self.tally.signal_number = number
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        self._stop_since_s = time.monotonic()
        for child in self.children:
            if child.process is None:
                child.over = True
            else:
                child.doing = "stopping"
                with suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGTERM)

    def _kill(self, children: Sequence[Child]) -> None:
        for child in children:
            if child.process is not None and child.process.poll() is None:
                with suppress(ProcessLookupError):
                    child.process.kill()

    def _start(self, child: Child) -> None:
        place = child.place
        device = "cuda" if place.device.startswith("cuda:") else place.device
        command = [
            sys.executable,
            "-P",  # no file of the working directory takes the place of a module
            "-m",
            "sdbatch",
            "worker",
            str(self.folder.path.absolute()),
            f"index={place.index}",
            f"workers={place.workers}",
        ]
        # Its own session: a Ctrl-C in the terminal reaches the supervisor alone, which then asks.
        process = subprocess.Popen(
            [*command, f"device={device}", f"threads={place.threads or 1}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(place),
            start_new_session=True,
        )
        child.begin(process)
        child.listener = threading.Thread(target=self._listen, args=(child, process), daemon=True)
        child.listener.start()

    def _listen(self, child: Child, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if (message := parse(line)) is not None:
                self._heard.put((child, process, message))
        process.wait()
        self._heard.put((child, process, None))

    def _turn(self) -> None:
        try:
            child, process, message = self._heard.get(timeout=0.2)
        except queue.Empty:
            pass
        else:
            if child.process is process:
                self._take(child, message)
        self._check_clocks()
        self.watcher.show(self.tally, self.children)

    def _take(self, child: Child, message: Message | None) -> None:
        was_blocked_s = child.blocked_s
        if message is None:
            self._ended(child)
            return
        child.hear(message)
        self.tally.had_work |= isinstance(message, Loading | Making)
        match message:
            case Committed(made, failed):
                self.tally.made += made
                self.tally.failed += failed
            case Blocked(seconds) if was_blocked_s < BLOCKED_S <= seconds:
                self._note(
                    f"{child.name} has waited for {seconds:.0f} s for the file system of {self.folder.path}. It goes on when that answers."
                )
            case Refused(error):
                self.tally.error = error
                self._ask_to_stop()
            case _:
                pass

    def _ended(self, child: Child) -> None:
        assert child.process is not None
        code = child.process.returncode
        child.process = None
        roster.drop_dead(self.folder.claims)
        if code == 0 or self._stop_since_s is not None or self.tally.error is not None:
            child.over = True
            return
        child.crashes += 1
        blamed = list(child.in_flight)
        child.in_flight.clear()
        how = child.last_words or describe_exit(code)
        if blamed:
            Crashes(self.folder.claims).add(blamed, how)
        cause = f"{child.name} died: {how}"
        if child.is_hopeless or child.crashes >= QUARANTINE_CRASHES:
            self._give_up(child, cause)
            return
        wait_s = BACKOFF_S[min(child.crashes - 1, len(BACKOFF_S) - 1)]
        child.restart_at_s = time.monotonic() + wait_s
        child.doing = "restarting"
        again = f" Its {len(blamed)} images in the making are tried again." if blamed else ""
        self._note(f"{cause}. Restarting it.{again}")

    def _give_up(self, child: Child, cause: str) -> None:
        """The device is used no more; the others go on."""
        child.over = True
        child.doing = "given up"
        often = "This" if child.is_hopeless else f"{child.crashes} times in a row without an image: this"
        self._note(f"{cause}. {often} device is given up. See {self._log.name}.")
        if all(other.over for other in self.children):
            self.tally.error = f"every device was given up; the last one: {cause}. See {self._log.name}."

    def _note(self, text: str) -> None:
        self.tally.notes.append(text)
        self.watcher.note(text)
        self._log.write(f"sdbatch: {text}\n")
        self._log.flush()

    def _check_clocks(self) -> None:
        now_s = time.monotonic()
        if self._stop_since_s is not None:
            asked_s = now_s - self._stop_since_s
            self._kill([child for child in self.children if asked_s > (STOP_S if child.leaving else GRACE_S)])
        for child in self.children:
            if child.restart_at_s is not None and now_s >= child.restart_at_s:
                if self._stop_since_s is not None or self.tally.is_all_tried:
                    child.over = True
                else:
                    self._start(child)
            silent_s = now_s - child.heard_s
            if child.process is not None and silent_s > child.patience_s:
                child.last_words = f"killed, since it said nothing for {silent_s:.0f} s while {child.doing}"
                self._note(f"{child.name} has said nothing for {silent_s:.0f} s while {child.doing}: killing it.")
                child.heard_s = now_s
                child.process.kill()


def describe_exit(code: int) -> str:
    """An exit code in words, with the likely cause."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hints = {
        "SIGKILL": "probably out of memory, or killed by hand",
        "SIGBUS": "a weight file changed on disk while it was in use, or the disk is full",
        "SIGSEGV": "a crash in native code",
    }
    return f"{name} ({hints[name]})" if name in hints else name
