"""Waiting for what a cluster does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], limit_s: float, what: str) -> None:
    """Look until it holds. Raises AssertionError when it does not within the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"no {what} within {limit_s:.0f} s"
        time.sleep(0.1)
