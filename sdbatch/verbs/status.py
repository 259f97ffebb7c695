"""`sdbatch status OUT [--watch] [--json] [--full]`: how far a sweep is and what failed, read from its folder alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from sdbatch.errors import FolderError, harmless
from sdbatch.verbs.words import Option, read_words

if TYPE_CHECKING:
    from sdbatch.results.folder import SweepFolder
    from sdbatch.run.progress import Progress

OPTIONS = {
    "watch": Option("false", "look again every two seconds until it is over"),
    "json": Option("false", "one line of JSON for scripts"),
    "full": Option("false", "also look at every image, and at every byte of the rows"),
}
SHOWN_FAILURES = 20
SHOWN_LINES = 12
"""Of workers, and of recipes."""
WATCH_S = 2.0
WATCH_SHARE = 20
"""A look takes at most one part in this many of the time: a large folder is read less often."""


def main(arguments: Sequence[str]) -> int:
    """Print the state. Returns 0 when all is made, 1 when something failed or is left."""
    words = read_words("status", arguments, ("OUT",), OPTIONS)
    from sdbatch.results.folder import SweepFolder
    from sdbatch.run.progress import measure

    folder = SweepFolder(words["OUT"])
    if not folder.plan.is_file():
        raise FolderError(f"{words['OUT']}: there is no sweep here (no plan.parquet). Sweeps are the folders in outputs/.")
    while True:
        started_s = time.monotonic()
        progress = measure(folder, full=words["full"] == "true")
        took_s = time.monotonic() - started_s
        is_over = words["watch"] != "true" or not progress.left
        _show(folder, progress, words["json"] == "true", clear=words["watch"] == "true" and sys.stdout.isatty())
        if is_over:
            return 0 if progress.counts["ok"] == progress.cells else 1
        time.sleep(max(WATCH_S, WATCH_SHARE * took_s))


def _show(folder: SweepFolder, progress: Progress, as_json: bool, clear: bool) -> None:
    from sdbatch.run.engine_state import ASK_S, engine_states
    from sdbatch.run.stall import stalled

    states = engine_states(folder, ASK_S)
    engines = [*map(str, states), *stalled(folder.path, folder.claims)]
    if as_json:
        sys.stdout.write(json.dumps({"out": str(folder.path), **progress.facts(), "engines": engines}) + "\n")
    else:
        lines = [*_head(folder, progress), *(f"  engine   {engine}" for engine in engines), *_faults(folder, progress)]
        if any(state.alive for state in states):
            lines.append(f"Its workers are there: sdbatch stop {folder.path} ends them.")
        elif progress.counts["ok"] < progress.cells:
            lines.append(f"Go on: sdbatch resume {folder.path}")
        sys.stdout.write(("\x1b[2J\x1b[H" if clear else "") + "\n".join(map(harmless, lines)) + "\n")
    sys.stdout.flush()


def _head(folder: SweepFolder, progress: Progress) -> list[str]:
    from sdbatch.run.display import duration

    counts = progress.counts
    faults = counts["failed"] + counts["nan"] + counts["flat"]
    lines = [f"{progress.name}: {counts['ok']} of {progress.cells} images made, {faults} failed, {progress.left} left ({folder.path})"]
    if progress.images_per_s and progress.left and progress.busy:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
        lines.append(f"  rate     {progress.images_per_s:.2f} images/s{left}; {len(progress.busy)} workers at work")
    workers = [
        f"  worker   {name}: {made.ok} images" + (f", {made.faulty} failed" if made.faulty else "") + _pace(made.seconds, made.ok)
        for name, made in progress.workers.items()
    ]
    recipes = [f"  recipe   {name}: {ok} of {cells}" for name, (cells, ok) in progress.recipes.items()]
    return lines + _shortened(workers, SHOWN_LINES) + _shortened(recipes, SHOWN_LINES)


def _pace(seconds: float, images: int) -> str:
    return f", {seconds / images:.2f} s each" if images and seconds else ""


def _shortened(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"  ... and {len(lines) - most} more"]


def _faults(folder: SweepFolder, progress: Progress) -> list[str]:
    from sdbatch.run.progress import iter_failures

    counts = progress.counts
    tried = counts["failed"] + counts["nan"] + counts["flat"]
    lines = [f"  {line}" for line in islice(iter_failures(folder, progress.index), SHOWN_FAILURES)] if tried else []
    if tried > SHOWN_FAILURES:
        lines.append(f"  ... and {tried - SHOWN_FAILURES} more")
    if counts["lost"]:
        lines.append(f"  {counts['lost']} images have a row but their file is gone or cut; a resume makes them again")
    lines += [f"  {part.name} cannot be read: {reason}" for part, reason in progress.unreadable.items()]
    if counts["ok"] == progress.cells and not progress.looked:
        lines.append(f"The images were not looked at: sdbatch status {folder.path} --full does.")
    return lines
