"""`sdbatch worker OUT index=0 workers=1 device=cpu threads=1`: one worker of a planned sweep, whoever starts it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from sdbatch.results.folder import SweepFolder
from sdbatch.run.message import Reporter
from sdbatch.run.stop import Stop
from sdbatch.run.worker import Place, Worker
from sdbatch.verbs.words import read_words

ORPHAN_GRACE_S = 15.0
"""A worker whose starter is gone commits what it has and ends; after this long it is ended."""


def main(arguments: Sequence[str]) -> int:
    """Work until nothing is left. Returns the exit code."""
    words = read_words("worker", arguments, ("OUT",), {"index": "0", "workers": "1", "device": "cpu", "threads": ""})
    stop = Stop()
    stop.install()
    _end_with(os.getppid())
    reporter = Reporter(sys.stdout)
    # Whatever libraries print belongs in the log; standard output carries messages only.
    sys.stdout = sys.stderr
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    threads = int(words["threads"]) if words["threads"] else None
    place = Place(int(words["index"]), int(words["workers"]), words["device"], threads)
    return Worker(SweepFolder(words["OUT"]), place, reporter, stop).run()


def _end_with(parent: int) -> None:
    """Stop when the process that started this one dies. Polled, since it must also work where there is no prctl."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="sdbatch-orphan", daemon=True).start()
