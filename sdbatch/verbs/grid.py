"""`sdbatch grid x=KEY y=KEY [z=KEY]`: a comparison grid of a sweep in MLflow, or of a sweep folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdbatch.results.folder import SweepFolder
from sdbatch.verbs.words import Option, read_words

if TYPE_CHECKING:
    from sdbatch.grid.save import Wish

OPTIONS = {
    "x": Option("", "parameter of the columns, such as lora.style_a.weight; none: no columns; unset: one that differs"),
    "y": Option("", "parameter of the rows"),
    "z": Option("", "parameter of the sections"),
    "from": Option("latest", "latest, a sweep's name or folder, or an MLflow filter such as \"params.sampler = 'ddim'\""),
    "uri": Option("", "MLflow tracking URI; unset: MLFLOW_TRACKING_URI, else outputs/mlflow.db"),
    "experiment": Option("sdbatch", "the experiment's name"),
    "to": Option("", "folder to write grid.png and grid.html to; unset: the sweep's own"),
    "title": Option("", "what stands above it; unset: the sweep's name"),
}


def main(arguments: Sequence[str]) -> int:
    """Draw, save, and log the grid back to the sweep's run. Returns the exit code."""
    words = read_words("grid", arguments, (), OPTIONS)
    from sdbatch.grid.save import Wish, save_grid
    from sdbatch.tracking.shipment import log_grid
    from sdbatch.tracking.source import read_folder, read_runs
    from sdbatch.tracking.target import Target

    wish = Wish(words["x"] or None, words["y"] or None, words["z"] or None, words["title"])
    folder = Path(words["from"])
    if SweepFolder(folder).is_sweep:
        with read_folder(folder) as source:
            saved = save_grid(source.table, source.path, _place(words["to"], source.folders), _titled(wish, source.title))
    else:
        target = Target(
            words["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('outputs/mlflow.db').absolute()}",
            words["experiment"],
        )
        with read_runs(target, words["from"]) as source:
            saved = save_grid(source.table, source.path, _place(words["to"], source.folders), _titled(wish, source.title))
            log_grid(target, source.run_ids, saved.pictures)
    sys.stdout.write("\n".join(str(path) for path in [*saved.pictures, saved.page]) + "\n")
    return 0


def draw_folder(folder: SweepFolder) -> Path:
    """The grid of a sweep that has just ended; returns the picture."""
    from sdbatch.grid.save import Wish, save_grid
    from sdbatch.tracking.source import read_folder

    with read_folder(folder.path) as source:
        return save_grid(source.table, source.path, folder.path, Wish(title=source.title)).pictures[0]


def _titled(wish: Wish, title: str) -> Wish:
    return wish if wish.title else replace(wish, title=title)


def _place(asked: str, folders: Sequence[Path]) -> Path:
    """Where to save: as asked, in the one sweep's folder, or here."""
    place = Path(asked) if asked else folders[0] if len(folders) == 1 else Path()
    place.mkdir(parents=True, exist_ok=True)
    return place
