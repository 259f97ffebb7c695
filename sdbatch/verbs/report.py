"""What a run leaves at its end: exports, the grid, MLflow, and the lines that say where all of it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdbatch.errors import SdbatchError
from sdbatch.plan.estimate import images
from sdbatch.run.display import duration
from sdbatch.run.launch import Ending
from sdbatch.run.outcome import Handed, Outcome, Printed
from sdbatch.run.projecting import start_tracking
from sdbatch.tracking.cursor import CURSOR
from sdbatch.tracking.target import Target, default_uri


def report(ending: Ending, tracking_uri: str | None) -> int:
    """Say how it ended; of a run that made its images here, also export, draw and record. Returns the exit code."""
    match ending:
        case Printed(text):
            sys.stdout.write(text)
        case Handed():
            sys.stdout.write("\n".join(_handed(ending)) + "\n")
        case Outcome():
            return finish(ending, tracking_uri or ending.settings.tracking_uri)
    return 0


def _handed(ending: Handed) -> list[str]:
    out = ending.folder.path
    what = "; ".join(str(submission) for submission in ending.submissions)
    head = f"submitted {ending.new}" if ending.new else "nothing submitted, since enough workers are there"
    return [
        f"{ending.settings.name}: {images(ending.left)} to make; {head} ({what}).",
        f"  follow   sdbatch status {out} --watch",
        f"  stop     sdbatch stop {out}",
        f"  go on    sdbatch resume {out}",
    ]


def finish(outcome: Outcome, tracking_uri: str | None) -> int:
    """Export, draw, record and report. A fault in one of these costs no image and is told, not raised."""
    if outcome.tally.signal_number:
        # Who stops a run wants it to end now; the resume draws and records.
        sys.stdout.write("\n".join([*_made(outcome), *_how_to_go_on(outcome)]) + "\n")
        return outcome.exit_code
    lines = _made(outcome)
    if outcome.done:
        lines += _guarded("grid", outcome, _grid)
    lines += [f"  table    {outcome.folder.rows}/  (pandas.read_parquet, DuckDB, datasets)"]
    # After the grid, which is one of the files that the run gets.
    lines += _track(outcome, tracking_uri)
    lines += _how_to_go_on(outcome)
    sys.stdout.write("\n".join(lines) + "\n")
    return outcome.exit_code


def _made(outcome: Outcome) -> list[str]:
    tally = outcome.tally
    if not tally.total:
        all_of_it = "the image is" if outcome.cells == 1 else f"all {outcome.cells} images are"
        return [f"{outcome.settings.name}: {all_of_it} made already; nothing to do.", _place(outcome)]
    took_s = time.monotonic() - tally.started_s
    failed = f", {tally.failed} failed" if tally.failed else ""
    rate = f" ({tally.rate:.2f}/s)" if tally.made else ""
    made = f"{images(tally.made)} made in {duration(took_s)}{rate}{failed}"
    return [f"{outcome.settings.name}: {made}; {outcome.done} of {outcome.cells} are there.", _place(outcome)]


def _place(outcome: Outcome) -> str:
    if outcome.settings.format != "files":
        return f"  dataset  {outcome.folder.blocks}/  ({outcome.settings.format})"
    if outcome.cells == 1 and outcome.done and (image := next(outcome.folder.images.rglob("*.png"), None)):
        return f"  image    {image}"
    return f"  images   {outcome.folder.images}/"


def _guarded(what: str, outcome: Outcome, action: Callable[[Outcome], list[str]]) -> list[str]:
    try:
        return action(outcome)
    except SdbatchError as error:
        return [f"  {what:<8} not made: {error}"]


def _grid(outcome: Outcome) -> list[str]:
    if not outcome.settings.grid or not 2 <= outcome.cells <= outcome.settings.grid_limit:
        return []
    if not outcome.tally.total and outcome.folder.grid_png.is_file():
        picture = outcome.folder.grid_png
    else:
        from sdbatch.verbs.grid import draw_folder

        picture = draw_folder(outcome.folder)
    return [f"  grid     {picture}  (grid.html beside it, in a browser)"]


def _track(outcome: Outcome, uri: str | None) -> list[str]:
    """Project what is not sent yet."""
    if outcome.settings.tracking == "none" or not (outcome.done or outcome.tally.failed):
        return []
    if not outcome.tally.total and (outcome.folder.path / CURSOR).is_file():
        return [f"  mlflow   sent before: {Target(uri or default_uri(outcome.folder.path)).viewer}"]
    output, _ = start_tracking(outcome.folder, outcome.settings, uri).communicate()
    text = output.decode(errors="replace").strip().splitlines()
    return [f"  mlflow   {line}" for line in text[-2:]] or [f"  mlflow   not sent; `sdbatch track {outcome.folder.path}` will send it"]


def _how_to_go_on(outcome: Outcome) -> list[str]:
    left = outcome.cells - outcome.done
    lines: list[str] = []
    if outcome.tally.error is not None:
        lines.append(f"Stopped: {outcome.tally.error}")
    if outcome.tally.failed:
        lines.append(f"{outcome.tally.failed} failed: `sdbatch status {outcome.folder.path}` lists them with the reasons.")
    if left > 0:
        lines.append(f"{images(left)} left. Go on: sdbatch resume {outcome.folder.path}")
    elif outcome.tally.signal_number:
        lines.append(f"What comes after the images is left. Go on: sdbatch resume {outcome.folder.path}")
    with suppress(ValueError):
        lines = [line.replace(str(Path.cwd()) + "/", "") for line in lines]
    return lines
