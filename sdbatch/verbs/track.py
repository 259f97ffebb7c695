"""`sdbatch track OUT [uri=URI]`: send a sweep's rows to MLflow; what is there already is not sent again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.verbs.words import Option, read_words

OPTIONS = {
    "uri": Option("", "MLflow tracking URI; unset: MLFLOW_TRACKING_URI, else mlflow.db beside OUT"),
    "experiment": Option("sdbatch", "the experiment's name"),
    "running": Option("false", "the sweep goes on, so its run stays open"),
}


def main(arguments: Sequence[str]) -> int:
    """Project. Returns 0 when all is sent, 1 when the rest waits for the next call."""
    words = read_words("track", arguments, ("OUT",), OPTIONS)
    from sdbatch.tracking.project import project
    from sdbatch.tracking.target import Target, default_uri

    folder = Path(words["OUT"])
    uri = words["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder)
    report = project(folder, Target(uri, words["experiment"]), running=words["running"] == "true")
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
