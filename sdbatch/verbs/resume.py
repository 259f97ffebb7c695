"""`sdbatch resume OUT`: go on with a sweep that was stopped; failed images are tried again.

By the launcher it was planned with, or another: `hydra/launcher=local`, `hydra.launcher.workers=4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdbatch.verbs.words import Option, read_words

OPTIONS = {"uri": Option("", "MLflow tracking URI; unset: the one the sweep was planned with")}
PREFIXES = ("hydra/launcher=", "hydra.launcher.")


def main(arguments: Sequence[str]) -> int:
    """Resume. Returns the exit code."""
    overrides = [word for word in arguments if word.startswith(PREFIXES)]
    words = read_words("resume", [word for word in arguments if word not in overrides], ("OUT",), OPTIONS)
    from sdbatch.run.launch import resume
    from sdbatch.verbs.report import report

    launcher = None
    if overrides:
        from sdbatch.run.prepare import read_launcher_overrides

        launcher = read_launcher_overrides(overrides)
    return report(resume(Path(words["OUT"]), words["uri"] or None, launcher), words["uri"] or None)
