"""Importing large libraries in less CPU time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Generator[None]:
    """Import large libraries in this block: they make half a million objects and no garbage.

    Searching those for garbage, as Python does every few hundred, takes a quarter of the time of importing torch and
    diffusers. Whatever is there after an import is never looked at again.
    """
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if was_on:
            gc.enable()
