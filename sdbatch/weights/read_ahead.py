"""Has the kernel read parts of a file before they are used, beside whatever is done meanwhile.

A mapped file is read where it is touched, a little at a time and in the order of the layers, not of the file: from a disk
over a network that takes several times as long as one pass through it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

WORTH_BYTES = 64 * 2**20
"""Less is read as fast by whoever needs it."""
_PIECE_BYTES = 2**20
"""The kernel takes no more at once than the disk's largest request, which is hardly ever less."""
_PIECES_AHEAD = 32
"""On their way at once: enough for a distant disk, little for the memory."""
_PROBE_BYTES = 16 * 2**20
_ONE_AT_A_TIME = threading.Lock()
"""So that the parts of a model do not contend for the disk."""


def read_ahead(path: Path, spans: Iterable[tuple[int, int]]) -> None:
    """Bring these parts of a file (begin, end) to the page cache, in the order of the file; what lies there already is passed over.

    Side effects: a thread that ends with the last one.
    """
    wanted = _join(sorted(spans))
    if hasattr(os, "posix_fadvise") and sum(end - begin for begin, end in wanted) >= WORTH_BYTES:
        threading.Thread(target=_read, args=(path, wanted), name="read-ahead", daemon=True).start()


def _join(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one, so that no small tensor costs a call of its own."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and begin - joined[-1][1] < _PIECE_BYTES:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _read(path: Path, spans: list[tuple[int, int]]) -> None:
    with _ONE_AT_A_TIME, suppress(OSError), path.open("rb", buffering=0) as file:  # who needs the file will say what is wrong with it
        descriptor, on_their_way = file.fileno(), deque[int]()
        for begin, length in _iter_absent(descriptor, spans):
            os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_WILLNEED)
            on_their_way.append(begin + length - 1)
            if len(on_their_way) > _PIECES_AHEAD:
                os.pread(descriptor, 1, on_their_way.popleft())  # waits for the oldest


def _iter_absent(descriptor: int, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The pieces (begin, length) that must be read."""
    for begin, end in spans:
        for probe in range(begin, end, _PROBE_BYTES):
            if not _is_present(descriptor, probe):
                for piece in range(probe, min(end, probe + _PROBE_BYTES), _PIECE_BYTES):
                    yield piece, min(_PIECE_BYTES, end - piece)


def _is_present(descriptor: int, offset: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:  # it would have to wait, or the file system cannot tell
        return False
    return True
