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
    submissions = read_submissions(folder)
    if not submissions:
        raise FolderError(f"{folder.path}: nothing was submitted for it. A run on this machine is stopped with Ctrl-C or kill.")
    states = engine_states(folder)
    for state in states:
        if state.alive:
            (slurm if state.submission.engine == "slurm" else ray).stop(state.submission)
            sys.stdout.write(f"stopped {state}\n")
    if not any(state.alive for state in states):
        sys.stdout.write("no worker is left to stop\n")
    silent = len(submissions) - len(states)
    if silent:
        sys.stderr.write(f"sdbatch: {silent} of {len(submissions)} submissions are not known: their engine does not answer.\n")
    return 1 if silent else 0
