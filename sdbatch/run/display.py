"""Progress on the terminal: a live display when there is one, plain lines when not."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from sdbatch.run.child import Child
from sdbatch.run.supervisor import Tally, Watcher

REFRESH_S = 0.25
PLAIN_S = 10.0
"""Between two lines of a log file."""
BAR_WIDTH = 30
"""In characters, at the most."""
TASK_S = 60.0
"""The same in the log of an engine's task."""


def build_watcher(tally_hint: str) -> Watcher:
    """The watcher for this terminal."""
    return LiveWatcher(tally_hint) if sys.stderr.isatty() else PlainWatcher()


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `3 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def remaining(tally: Tally) -> str:
    """The time left at the rate so far."""
    done = tally.made + tally.failed
    return duration((tally.total - done) / tally.rate) if done else "..."


class PlainWatcher(Watcher):
    """One line every few seconds."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._shown = -1

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """A line, if there is news and the last one is a while ago."""
        now_s = time.monotonic()
        done = tally.made + tally.failed
        if done == self._shown or (now_s - self._last_s < PLAIN_S and done < tally.total):
            return
        self._last_s, self._shown = now_s, done
        if done:
            failed = f", {tally.failed} failed" if tally.failed else ""
            sys.stderr.write(f"{done}/{tally.total} images{failed}, {tally.rate:.2f} images/s, {remaining(tally)} left\n")
        else:
            sys.stderr.write(f"0/{tally.total} images, {', '.join(child.doing for child in children)}\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """A line of its own."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class TaskWatcher(Watcher):
    """A line a minute for the log of one task among others, which knows only what it made itself."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """A line, if the last one is a while ago."""
        if time.monotonic() - self._last_s >= TASK_S:
            self._last_s = time.monotonic()
            doing = ", ".join(f"{child.place.device} {child.doing}" for child in children)
            self.note(f"{tally.made} images made here, {tally.failed} failed, {tally.rate:.2f} images/s; {doing}")

    def note(self, text: str) -> None:
        """A line of its own."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class LiveWatcher(Watcher):
    """A bar for the sweep and a line per device, by rich."""

    def __init__(self, title: str) -> None:
        from rich.live import Live

        self.title = title
        self._live = Live(refresh_per_second=1 / REFRESH_S, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self._last_s = 0.0

    def show(self, tally: Tally, children: Sequence[Child]) -> None:
        """Redraw, at most a few times a second; the end clears the display."""
        now_s = time.monotonic()
        if all(child.over for child in children):
            self._live.stop()
        elif now_s - self._last_s >= REFRESH_S:
            self._last_s = now_s
            self._live.update(self._picture(tally, children))

    def _picture(self, tally: Tally, children: Sequence[Child]) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = tally.made + tally.failed
        failed = f"  {tally.failed} failed" if tally.failed else ""
        facts = f"{done}/{tally.total} images  {tally.rate:.2f}/s  {remaining(tally)} left{failed}" if done else f"0/{tally.total} images"
        # The numbers come first: on a narrow terminal the bar is short or absent, then the title is cut.
        room = self._live.console.width - len(facts) - 2
        head = Table.grid(padding=(0, 1))
        bar = min(BAR_WIDTH, room - len(self.title) - 1)
        title = [Text(self.title[:room], style="bold", no_wrap=True)] if room > 0 else []
        head.add_row(*title, *([ProgressBar(total=tally.total, completed=done, width=bar)] if bar > 0 else []), Text(facts, no_wrap=True))
        devices = Table.grid(padding=(0, 1))
        for child in children:
            devices.add_row(Text(f"  {child.place.device}", style="cyan"), Text(child.doing, style="dim"))
        return Group(head, devices)

    def note(self, text: str) -> None:
        """Above the display."""
        self._live.console.print(text, markup=False, highlight=False)
