"""The index of a models folder: what every file is, read once and kept by the file's identity on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sdbatch.errors import WeightFileError
from sdbatch.weights.cache import FileCache, FileState, cache_folder
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.header import unreadable
from sdbatch.weights.identify import identify
from sdbatch.weights.identity import Identity
from sdbatch.weights.kinds import KINDS
from sdbatch.weights.record import RECORD_VERSION, from_record, to_record
from sdbatch.weights.spread import map_files


@dataclass(frozen=True, slots=True)
class Listed:
    """One option of the models folder."""

    group: str
    name: str
    """The option name: what is typed after `lora=`."""
    path: Path
    identity: Identity | None
    """None when the file cannot be read as a weight file."""
    fault: str | None = None
    """Why it cannot."""


class Index:
    """Identities of weight files, remembered by (device, inode, size, mtime) in the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.cache = FileCache((folder or cache_folder()) / f"identities-{RECORD_VERSION}")

    def identify(self, path: Path) -> Identity:
        """What this file or diffusers folder is, from memory when it has not changed.

        Raises: WeightFileError.
        """
        try:
            state = _state_of_folder(path) if path.is_dir() else FileState.of(path)
        except OSError as fault:
            raise unreadable(path, fault) from fault
        if kept := self._recall(state, path):
            return kept
        identity = identify(path)
        self.cache.store(state, to_record(identity))
        return identity

    def list_catalog(self, catalog: Catalog, groups: Iterable[str] | None = None) -> Iterator[Listed]:
        """Every option of these groups (all of them when None) and what it is; a file that is damaged says so."""
        asked = groups if groups is not None else [kind.group for kind in KINDS]
        options = [(group, name, path) for group in asked for name, path in catalog.options(group).items()]
        found = map_files(self._try, [path for _, _, path in options])
        for (group, name, path), identity in zip(options, found, strict=True):
            fault = str(identity) if isinstance(identity, WeightFileError) else None
            yield Listed(group, name, path, identity if isinstance(identity, Identity) else None, fault)

    def _try(self, path: Path) -> Identity | WeightFileError:
        try:
            return self.identify(path)
        except WeightFileError as fault:
            return fault

    def _recall(self, state: FileState, path: Path) -> Identity | None:
        record = self.cache.load(state)
        try:
            # The same file may be known under another name.
            return replace(from_record(record), path=path) if record else None
        except (KeyError, TypeError):
            return None


def _state_of_folder(folder: Path) -> FileState:
    """A folder is the same as long as the names, sizes and times of its files are."""
    own = FileState.of(folder)
    total = hashlib.sha256()
    size, newest = 0, own.mtime_ns
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            state = FileState.of(Path(root) / name)
            total.update(os.fsencode(f"{root}\0{name}\0{state.to_key()}\n"))
            size += state.size
            newest = max(newest, state.mtime_ns)
    digest = int.from_bytes(total.digest()[:6], "big")
    # The newest time keeps a folder that just changed unsettled; the digest tells apart what the newest time does not.
    return FileState(own.device, own.inode ^ digest, size, newest)
