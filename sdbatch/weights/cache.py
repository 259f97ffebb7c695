"""What was computed about a file, kept by the file's identity on disk: small JSON files, one per weight file.

A cache that cannot be read or written only costs time, so its faults are never shown.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTLED_S = 2.0
"""A file changed later than this long ago may change again within one tick of its clock: nothing is kept about it yet."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells that a file is still the same without reading it."""

    device: int
    inode: int
    size: int
    """In bytes."""
    mtime_ns: int

    @classmethod
    def of(cls, path: Path | int) -> FileState:
        """The state of a path (links followed) or of an open file descriptor."""
        stat = os.stat(path)  # noqa: PTH116  (takes a descriptor too)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether another change would be seen in the time stamp."""
        return time.time() - self.mtime_ns / 1e9 > SETTLED_S

    def to_key(self) -> str:
        """A file name for the cache."""
        return f"{self.device:x}-{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"


def cache_folder() -> Path:
    """The user's cache folder of sdbatch (XDG), or one in the temporary folder where there is no home."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "sdbatch"
    try:
        return Path.home() / ".cache" / "sdbatch"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"sdbatch-{os.getuid()}"


class FileCache:
    """A dictionary per weight file on disk, safe for many processes at once: each entry is written whole and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, state: FileState) -> dict[str, Any]:
        """What is known about this file; empty when nothing is."""
        try:
            known = json.loads(self._path(state).read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def store(self, state: FileState, facts: dict[str, Any]) -> None:
        """Keep these facts, beside what is known already, for as long as the file stays the same."""
        if not state.is_settled:
            return
        target = self._path(state)
        temporary = target.with_name(f".tmp-{os.getpid()}-{time.monotonic_ns()}")
        with suppress(OSError):
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps({**self.load(state), **facts}), encoding="utf-8")
                temporary.replace(target)
            except OSError:
                temporary.unlink(missing_ok=True)

    def _path(self, state: FileState) -> Path:
        # 256 sub-folders, so that none grows long.
        return self.folder / f"{state.inode & 0xFF:02x}" / f"{state.to_key()}.json"
