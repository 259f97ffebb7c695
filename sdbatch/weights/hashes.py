"""The hashes by which this ecosystem knows a weight file, computed once per file and kept on disk.

| name | bytes | used by |
|---|---|---|
| SHA-256 | the whole file | sdbatch's image ids, model pages |
| AutoV1 (legacy) | 64 KiB at 1 MiB, first 8 digits | A1111 before 2023 |
| AutoV2 | SHA-256, first 10 digits | A1111's `Model hash`, model pages |
| AutoV3 | what follows the safetensors header, first 12 digits | A1111's `Lora hashes`, model pages |
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdbatch.errors import WeightFileError
from sdbatch.weights.cache import FileCache, FileState, cache_folder
from sdbatch.weights.header import unreadable
from sdbatch.weights.kinds import WEIGHT_SUFFIXES
from sdbatch.weights.peft import ADAPTER_CONFIG, ADAPTER_MODEL

CHUNK_BYTES = 8 * 2**20

_FOLDER_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".txt", ".model"}
"""Of a diffusers folder everything counts that decides the image: weights, configs and tokenizers, but no README."""


class Hasher:
    """Hashes of weight files, remembered by (device, inode, size, mtime) in the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.cache = FileCache(folder or cache_folder() / "hashes")

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file; of a diffusers folder: of its sorted relative file names and their hashes. 64 hex digits.

        Raises: WeightFileError when it cannot be read, or changes while it is read.
        """
        if path.is_dir():
            return self._sha256_of_folder(path)
        return self._remembered(path, "sha256", lambda descriptor: _digest(descriptor, 0))

    def recall(self, path: Path) -> str | None:
        """The SHA-256 of a file if it is known already; nothing is read."""
        try:
            known = self.cache.load(FileState.of(path)).get("sha256")
        except OSError:
            return None
        return known if isinstance(known, str) else None

    def autov3(self, path: Path) -> str:
        """SHA-256 of the bytes after a safetensors header, 64 hex digits; of any other file its SHA-256."""
        return self._remembered(path, "autov3", lambda descriptor: _digest(descriptor, _body_start(descriptor)))

    def autov2_short(self, path: Path) -> str:
        """First 10 digits of the SHA-256: what A1111 writes as `Model hash`, and for embeddings and VAEs."""
        return self.sha256(path)[:10]

    def lora_short(self, path: Path, metadata: dict[str, str] | None = None) -> str:
        """The 12 digits that A1111 writes in `Lora hashes`: the trainer's own `sshs_model_hash` first, else AutoV3."""
        recorded = (metadata or {}).get("sshs_model_hash", "").strip().lower().removeprefix("0x")
        is_hash = len(recorded) == 64 and all(digit in "0123456789abcdef" for digit in recorded)
        return (recorded if is_hash else self.autov3(path))[:12]

    def legacy_short(self, path: Path) -> str:
        """AutoV1: 8 digits of a hash of 64 KiB in the middle; A1111's model hash before 2023."""
        with _opened(path) as descriptor:
            return hashlib.sha256(os.pread(descriptor, 0x10000, 0x100000)).hexdigest()[:8]

    def _sha256_of_folder(self, folder: Path) -> str:
        total = hashlib.sha256()
        for relative in sorted(_iter_names(folder)):
            total.update(os.fsencode(f"{relative}\0{self.sha256(folder / relative)}\n"))
        return total.hexdigest()

    def _remembered(self, path: Path, algorithm: str, compute: Callable[[int], str]) -> str:
        with _opened(path) as descriptor:
            state = FileState.of(descriptor)
            known = self.cache.load(state).get(algorithm)
            if isinstance(known, str) and len(known) == 64:
                return known
            digest = compute(descriptor)
            if FileState.of(descriptor) != state:
                raise WeightFileError(f"{path}: changed while it was being read. Wait until it is complete, then run again.")
        self.cache.store(state, {algorithm: digest})
        return digest


@contextmanager
def _opened(path: Path) -> Generator[int]:
    """The descriptor of a file opened for reading; what cannot be opened is a WeightFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as fault:
        raise unreadable(path, fault) from fault
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(descriptor: int, start: int) -> str:
    """SHA-256 of the bytes from `start` to the end."""
    total = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    os.lseek(descriptor, start, os.SEEK_SET)
    while count := os.readv(descriptor, [buffer]):
        total.update(view[:count])
    return total.hexdigest()


def _body_start(descriptor: int) -> int:
    """Where the tensors of a safetensors file begin; 0 for any other file."""
    head = os.pread(descriptor, 9, 0)
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(head[:8], "little")
    return 8 + length if head[8:] == b"{" and 8 + length <= size else 0


def _iter_names(folder: Path) -> Iterator[str]:
    """Relative names, with `/`, of the files of a diffusers folder that decide its images."""
    is_adapter = (folder / ADAPTER_CONFIG).is_file()  # whose folder may be that of its training
    for root, folders, names in os.walk(folder):
        folders[:] = [] if is_adapter else [name for name in folders if not name.startswith(".")]
        for name in names:
            counts = name == ADAPTER_CONFIG or name.startswith(ADAPTER_MODEL) if is_adapter else not name.startswith(".")
            if counts and Path(name).suffix.lower() in _FOLDER_SUFFIXES:
                yield (Path(root) / name).relative_to(folder).as_posix()
