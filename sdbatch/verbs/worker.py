"""`sdbatch worker OUT`: work on a planned sweep with every device that is here, beside whoever else does.

What engines start, and what a user may start by hand on any machine that sees the folder. With `device=` it is one of the
processes that this one supervises.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdbatch.errors import ConfigError, FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.run.device import Place
from sdbatch.run.message import Reporter
from sdbatch.run.stop import Stop
from sdbatch.run.worker import Worker
from sdbatch.verbs.words import Option, read_words

ORPHAN_GRACE_S = 15.0
"""A worker whose starter is gone commits what it has and ends; after this long it is ended."""
OPTIONS = {
    "index": Option("", "which of the workers this is, from 0; unset: as the engine says"),
    "workers": Option("", "how many there are; unset: as the engine says"),
    "devices": Option("", "such as cuda:0,cuda:1; unset: every device that is here"),
    "threads": Option("", "CPU threads of a device; unset: all cores shared evenly"),
    "device": Option("", "internal: the one device of a supervised process"),
}


def main(arguments: Sequence[str]) -> int:
    """Work until nothing is left. Returns the exit code: 0 also when cells failed, which is not the worker's fault."""
    words = read_words("worker", arguments, ("OUT",), OPTIONS)
    for key in ("index", "workers", "threads"):
        if words[key] and not words[key].isdigit():
            raise ConfigError(f"{key}={words[key]}: give a whole number.")
    _end_with(os.getppid())
    return _work_alone(words) if words["device"] else _work_as_task(words)


def _work_alone(words: Mapping[str, str]) -> int:
    """One device, in this process; messages go to whoever supervises."""
    stop = Stop()
    stop.install()
    reporter = Reporter(sys.stdout)
    # Whatever libraries print belongs in the log; standard output carries messages only.
    sys.stdout = sys.stderr
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    place = Place(int(words["index"] or 0), int(words["workers"] or 1), words["device"], _number(words["threads"]))
    return Worker(SweepFolder(words["OUT"]), place, reporter, stop).run()


def _work_as_task(words: Mapping[str, str]) -> int:
    """All devices, each in a supervised process; the last task to end draws and records the sweep."""
    from sdbatch.run import requeue
    from sdbatch.run.launch import close_if_last
    from sdbatch.run.node import Task, find_task, work
    from sdbatch.run.projecting import node_uri, wait_for_tracking
    from sdbatch.run.roster import is_finished
    from sdbatch.verbs.report import finish

    folder = SweepFolder(words["OUT"])
    if not folder.plan.is_file():
        raise FolderError(f"{Path(words['OUT'])}: there is no sweep here (no plan.parquet). Give the folder of a planned sweep.")
    found = find_task(os.environ)
    task = Task(_number(words["index"]) or found.index, _number(words["workers"]) or found.tasks)
    tally = work(folder, task, words["devices"], _number(words["threads"]))
    if tally.signal_number and not is_finished(folder):
        if (job := requeue.job_id(os.environ)) is not None:
            requeue.leave(job, folder, tally)
        return 128 + tally.signal_number
    if tally.error is not None:
        sys.stderr.write(f"sdbatch: {tally.error}\n")
        return 1
    if (outcome := close_if_last(folder)) is not None:
        wait_for_tracking(folder)
        finish(outcome, node_uri(outcome.settings))
    return 0


def _number(text: str) -> int | None:
    return int(text) if text else None


def _end_with(parent: int) -> None:
    """Stop when the process that started this one dies. Polled, since it must also work where there is no prctl."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="sdbatch-orphan", daemon=True).start()
