"""The command line: find the verb, hand over, turn errors into one clear message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from sdbatch import __version__
from sdbatch.errors import SdbatchError, did_you_mean, harmless

VERBS = {
    "run": "make the images of a configuration (the default verb)",
    "plan": "show what a run would make, load and cost, and every fault in it",
    "resume": "go on with a sweep that was stopped",
    "stop": "end the workers that were submitted to an engine",
    "status": "how far a sweep is, and what failed",
    "grid": "draw a comparison grid from MLflow or from a sweep folder",
    "track": "send a sweep's rows to MLflow",
    "compact": "merge the many small files of a made sweep into larger ones",
    "export": "write a sweep as a Parquet or WebDataset dataset",
    "models": "list the weight files that are options",
    "merge": "merge checkpoints, bake LoRAs in, or make one LoRA of several",
    "convert": "write a weight file in another form: safetensors, folder, number format, pruned",
    "inspect": "tell what a weight file is",
    "pull": "fetch models from the Hugging Face Hub ahead of a run",
    "replay": "make an image again from its PNG",
    "verify": "check a sweep's images against its rows",
    "doctor": "whether this machine and a folder can hold a sweep",
    "worker": "run as one worker of a sweep (started by launchers)",
}
"""Verb -> what it does. Each is a module of sdbatch.verbs with `main(arguments) -> exit code`, imported when called."""
COMPOSING = ("run", "plan")
"""Verbs of a whole configuration, whose help is the groups' and keys'."""

STOPPED = 1
REFUSED = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0 done, 1 finished with failures, 2 refused, 130 or 143 stopped by a signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb, rest = split_verb(given)
    try:
        if verb is None:
            verbs = did_you_mean(given[0], VERBS, shown=len(VERBS))
            raise SdbatchError(f"{given[0]}: there is no such verb. {verbs} Keys are given as key=value.")
        module = import_module(f"sdbatch.verbs.{verb}")
        if verb not in COMPOSING and {"-h", "--help"}.intersection(rest):
            from sdbatch.verbs.words import to_help

            sys.stdout.write(to_help(module))
            return 0
        return int(module.main(rest))
    except SdbatchError as error:
        from sdbatch.tracking.target import redact

        # An error repeats what was asked, and that may hold a password.
        sys.stderr.write(f"sdbatch: {harmless(redact(str(error)))}\n")
        return REFUSED
    except KeyboardInterrupt:
        sys.stderr.write("sdbatch: stopped.\n")
        return INTERRUPTED
    except MemoryError:
        sys.stderr.write("sdbatch: out of memory. What is committed stays; run the same command again on a machine with more.\n")
        return STOPPED
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left; what it took is all it wanted.
        sys.stderr.close()
        return 0
    except OSError as error:
        from pathlib import Path

        from sdbatch.results.disk import folder_error

        sys.stderr.write(f"sdbatch: {folder_error('cannot go on in', Path(error.filename or '.'), error)}\n")
        return STOPPED


def console() -> NoReturn:
    """The program: run a verb and end the process with its exit code.

    All files are synced by then. Tearing down the interpreter would only give threads of native libraries a chance to abort.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def split_verb(given: list[str]) -> tuple[str | None, list[str]]:
    """The verb and its arguments: `run` when the first word is an option or key=value; None for a word that is neither."""
    if given[:1] == ["--version"]:
        sys.stdout.write(f"sdbatch {__version__}\n")
        raise SystemExit(0)
    if not given or given[0].startswith("-") or "=" in given[0] or given[0][:1] in ("+", "~"):
        return "run", given
    return (given[0], given[1:]) if given[0] in VERBS else (None, given)
