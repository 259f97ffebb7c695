"""Watch a sweep that others make, from its folder, until it is done or nobody is left to make it."""

from __future__ import annotations

import signal
import threading
import time

from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import read_index
from sdbatch.run import roster
from sdbatch.run.child import Child
from sdbatch.run.device import Place
from sdbatch.run.engine_state import ASK_S, EngineState, engine_states
from sdbatch.run.outcome import count
from sdbatch.run.stall import stalled
from sdbatch.run.supervisor import Tally, Watcher

LOOK_S = 2.0
LOOK_SHARE = 20
"""A look takes at most one part in this many of the time: a large folder is read less often."""


def follow(folder: SweepFolder, before: int, watcher: Watcher, by_engine: bool = True) -> Tally:
    """Show the progress to the end. A signal ends the watching, not the work.

    Workers of an engine that leave work behind are a fault; without one, the end is also when nobody is left.
    """
    plan = PlanFile(folder.plan)
    tally = Tally(plan.cells - before)
    crowd = Child(Place(device="workers"), doing="waiting for the engine" if by_engine else "with the last shards")
    over = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        del frame
        tally.signal_number = number
        over.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    asked_s = time.monotonic()
    try:
        while not over.is_set():
            looked_s = time.monotonic()
            made, tally.failed = count(plan, read_index(folder))
            tally.made = made - before
            if tally.made + tally.failed >= tally.total:
                break
            if not by_engine and not roster.watch_alive(folder.claims):
                break
            if by_engine and looked_s - asked_s >= ASK_S:
                asked_s = looked_s
                states = engine_states(folder)
                crowd.doing = "; ".join(str(state) for state in states) or "nothing was submitted"
                if is_deserted(folder, states):
                    why = stalled(folder.path, folder.claims) or [f"The workers' logs tell why ({folder.path / 'slurm'}, or Ray's)."]
                    tally.error = f"{crowd.doing}, and nobody else is at work. {' '.join(why)}"
                    break
            watcher.show(tally, [crowd])
            over.wait(max(LOOK_S, LOOK_SHARE * (time.monotonic() - looked_s)))
    finally:
        crowd.over = True
        watcher.show(tally, [crowd])
        for number, handler in previous.items():
            signal.signal(number, handler)
    if tally.signal_number:
        watcher.note(f"The workers go on without this process: sdbatch status {folder.path} --watch, or sdbatch stop {folder.path}.")
    return tally


def is_deserted(folder: SweepFolder, states: list[EngineState]) -> bool:
    """Whether no claim is alive, and every engine that was asked for workers answers that none is left."""
    if any(state.alive or state.counts is None for state in states):
        return False
    return not roster.watch_alive(folder.claims)
