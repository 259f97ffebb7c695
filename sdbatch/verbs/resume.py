"""`sdbatch resume OUT`: go on with a sweep that was stopped; failed images are tried again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdbatch.verbs.words import read_words


def main(arguments: Sequence[str]) -> int:
    """Resume. Returns the exit code."""
    words = read_words("resume", arguments, ("OUT",), {"uri": ""})
    from sdbatch.run.launch import resume
    from sdbatch.verbs.report import finish

    outcome = resume(Path(words["OUT"]), words["uri"] or None)
    return finish(outcome, words["uri"] or outcome.settings.tracking_uri)
