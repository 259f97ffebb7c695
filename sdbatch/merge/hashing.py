"""Hashes of the sources, computed beside the merge: the new file tells them, but only its end waits for them."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

from sdbatch.weights.hashes import Hasher


class LaterHasher(Hasher):
    """Gives a mark, as long as a hash, in the place of one that is not known yet; `settle` puts the hash there."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._inner = Hasher(folder)
        self._coming: dict[str, Future[str]] = {}

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file or folder if it is known already, else a mark while a thread computes it."""
        if known := self.recall(path):
            return known
        mark = f"hash-{len(self._coming)}-".ljust(64, "-")
        self._coming[mark] = Future()
        # A daemon, so that Ctrl-C does not wait for gigabytes.
        threading.Thread(target=self._compute, args=(path, self._coming[mark]), daemon=True).start()
        return mark

    def _compute(self, path: Path, coming: Future[str]) -> None:
        try:
            coming.set_result(self._inner.sha256(path))
        except Exception as fault:  # raised where the hash is asked for
            coming.set_exception(fault)

    def settle(self, text: str) -> str:
        """The text with the hashes in the place of their marks, once they are known.

        Raises: WeightFileError when a file cannot be read, or changed while it was read.
        """
        for mark, coming in self._coming.items():
            if mark in text:
                text = text.replace(mark, coming.result())
        return text
