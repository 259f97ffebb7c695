"""What is read ahead lies in the page cache when it is used; the rest of the file stays on the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.weights import read_ahead as module
from sdbatch.weights.read_ahead import read_ahead

MB = 2**20


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(30)


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The pieces (begin, length) that the kernel is asked to read."""
    found: list[tuple[int, int]] = []
    ask: Callable[[int, int, int, int], None] = os.posix_fadvise

    def note(descriptor: int, begin: int, length: int, advice: int) -> None:
        found.append((begin, length))
        ask(descriptor, begin, length, advice)

    monkeypatch.setattr(module, "WORTH_BYTES", 2 * MB)
    monkeypatch.setattr(os, "posix_fadvise", note)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """40 MB of which nothing is in the page cache, where the file system can forget."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(40 * MB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_spans_are_read_in_the_order_of_the_file_and_nothing_else(
    path: Path, advised: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", _never)
    read_ahead(path, [(30 * MB, 32 * MB), (3 * MB, 5 * MB), (5 * MB + 8, 6 * MB)])
    wait()
    assert advised == [(3 * MB, MB), (4 * MB, MB), (5 * MB, MB), (30 * MB, MB), (31 * MB, MB)]
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 1, 31 * MB), "the file is as it was"


def test_what_lies_in_memory_is_not_asked_for(path: Path, advised: list[tuple[int, int]]) -> None:
    path.read_bytes()
    read_ahead(path, [(0, 40 * MB)])
    wait()
    assert advised == []


def test_little_is_left_to_who_needs_it(path: Path, advised: list[tuple[int, int]]) -> None:
    read_ahead(path, [(0, MB)])
    wait()
    assert advised == []


def test_a_file_that_is_gone_is_no_fault_here(path: Path, advised: list[tuple[int, int]]) -> None:
    path.unlink()
    read_ahead(path, [(0, 40 * MB)])
    wait()
    assert advised == []


def _never(*_: object) -> int:
    raise BlockingIOError
