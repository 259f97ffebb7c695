"""`sdbatch stop OUT`: ask the engines of a sweep to end its workers, which commit what they have."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdbatch.errors import FolderError
from sdbatch.verbs.words import read_words


def main(arguments: Sequence[str]) -> int:
    """Stop what was submitted. Returns 0, or 1 when an engine does not answer."""
    words = read_words("stop", arguments, ("OUT",), {})
    from sdbatch.results.folder import SweepFolder
    from sdbatch.run.engine_state import engine_states
    from sdbatch.run.launchers import ray, slurm
    from sdbatch.run.launchers.command import read_submissions

    folder = SweepFolder(words["OUT"])
    if not read_submissions(folder):
        raise FolderError(f"{folder.path}: nothing was submitted for it. A run on this machine is stopped with Ctrl-C or kill.")
    states = engine_states(folder)
    for state in states:
        if state.alive:
            (slurm if state.submission.engine == "slurm" else ray).stop(state.submission)
            sys.stdout.write(f"stopped {state}\n")
        elif state.counts is None:
            sys.stderr.write(f"sdbatch: {state}; its workers may be at work. Try again where its engine answers.\n")
    if all(state.counts == {} for state in states):
        sys.stdout.write("no worker is left to stop\n")
    return 1 if any(state.counts is None for state in states) else 0
