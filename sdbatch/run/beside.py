"""What goes on beside a block of code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object], every_s: float, name: str) -> Generator[None]:
    """Do the work again and again, on a thread of this name, until the block is left."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
