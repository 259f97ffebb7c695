"""`sdbatch track OUT [uri=URI]`: send a sweep's rows to MLflow; what is there already is not sent again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.verbs.words import read_words


def main(arguments: Sequence[str]) -> int:
    """Project. Returns 0 when all is sent, 1 when the rest waits for the next call."""
    words = read_words("track", arguments, ("OUT",), {"uri": "", "experiment": "sdbatch", "running": "false"})
    from sdbatch.tracking.project import project
    from sdbatch.tracking.target import Target, default_uri

    folder = Path(words["OUT"])
    uri = words["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder)
    report = project(folder, Target(uri, words["experiment"]), running=words["running"] == "true")
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
