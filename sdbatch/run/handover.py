"""A batch that is denoised and not with the writer yet. A GPU decodes it beside the next one, and it must not wait for that one's end."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field

from sdbatch.results.writer import BlockWriter, Outcome
from sdbatch.run.attempt import Attempt, Started
from sdbatch.run.pulse import Pulse


@dataclass(slots=True)
class Handover:
    """A batch on its way to the writer."""

    place: tuple[int, int]
    """Shard and block."""
    attempt: Attempt
    started: Started
    attempts: int
    done: set[str]
    """Ids that were committed before: cells that are denoised again only to keep the batch whole."""
    is_last: bool
    """Whether its block is complete with it."""
    _thread: threading.Thread | None = None
    _decoded: threading.Event = field(default_factory=threading.Event)
    _is_over: bool = False

    def begin(self, writer: BlockWriter) -> None:
        """Hand it over as soon as it is decoded, beside whatever the caller does."""
        self._thread = threading.Thread(target=self._hand_over_if_well, args=(writer,), name="sdbatch-handover", daemon=True)
        self._thread.start()

    def finish(self, writer: BlockWriter, pulse: Pulse) -> None:
        """Have it handed over when this returns."""
        if self._thread is not None:
            with pulse.busy():
                self._decoded.wait()
            self._thread.join()  # the writer may wait for the disk
        if not self._is_over:
            with pulse.busy():
                outcomes = self.attempt.finish(self.started)
            self._put(writer, outcomes)

    def _hand_over_if_well(self, writer: BlockWriter) -> None:
        """Any fault is left to `finish`, which finds it again, when nothing else is in the making."""
        with suppress(Exception):
            try:
                outcomes = self.attempt.wait(self.started)
            finally:
                self._decoded.set()
            self._put(writer, outcomes)

    def _put(self, writer: BlockWriter, outcomes: list[Outcome]) -> None:
        made = [outcome for outcome in outcomes if outcome.cell.image_id not in self.done]
        writer.put(self.place, made, self.attempts, self.is_last)
        self._is_over = True
