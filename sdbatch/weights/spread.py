"""The same work for many files: by one process while that is quick, by all cores once it is not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE_S = 0.25
"""What known files of a whole folder take together, and ten times what it costs to start the processes."""
MANY = 32
"""Files that must be left for other processes to pay."""
MOST_PROCESSES = 8
"""More would only wait for the disk."""

_Found = TypeVar("_Found")


def map_files(work: Callable[[Path], _Found], paths: Sequence[Path]) -> Iterator[_Found]:
    """`work` of every path, in their order; it must not raise, and what it gives must be picklable."""
    spent_s = 0.0
    for place, path in enumerate(paths):
        if spent_s > PATIENCE_S and len(paths) - place >= MANY and (count := _count_processes()) > 1:
            yield from _map_by_processes(work, paths[place:], count)
            return
        started_s = time.monotonic()
        found = work(path)
        spent_s += time.monotonic() - started_s
        yield found


def _count_processes() -> int:
    # A process with threads cannot be forked safely, and to start others from nothing would run the caller's script again.
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def _map_by_processes(work: Callable[[Path], _Found], paths: Sequence[Path], count: int) -> Iterator[_Found]:
    """Each process takes every so-manyth file and waits where its results are not taken: memory does not grow with the files."""
    # Only a large folder seen for the first time needs it.
    from multiprocessing import Pipe, get_context

    context = get_context("fork")
    readers: list[Connection[Any, Any]] = []
    processes: list[Any] = []
    try:
        for first in range(count):
            reader, writer = Pipe(duplex=False)
            readers.append(reader)
            processes.append(context.Process(target=_work_off, args=(work, paths[first::count], writer, readers), daemon=True))
            with _without_interrupts():  # one that comes while it begins is ours alone to answer
                processes[-1].start()
            writer.close()
        for place, path in enumerate(paths):
            try:
                found = readers[place % count].recv()
            except EOFError:
                found = work(path)  # the process was killed; here it is seen what of
            yield found
    finally:
        for reader in readers:
            reader.close()
        for process in processes:
            process.join()


@contextmanager
def _without_interrupts() -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work_off(
    work: Callable[[Path], object], paths: Sequence[Path], writer: Connection[Any, Any], inherited: Sequence[Connection[Any, Any]]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for reader in inherited:
        reader.close()
    # Who does not listen any more has been stopped, by Ctrl-C or worse.
    with suppress(BrokenPipeError):
        for path in paths:
            writer.send(work(path))
