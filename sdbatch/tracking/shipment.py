"""The files of a sweep as artifacts of its runs, each sent once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from sdbatch.results.block import ImageReader
from sdbatch.results.folder import SweepFolder
from sdbatch.tracking.cursor import Cursor
from sdbatch.tracking.store import Store, open_store
from sdbatch.tracking.table import redacted_text, write_table
from sdbatch.tracking.tally import Sample
from sdbatch.tracking.target import Target

ROWS = "rows.parquet"
"""All rows in one file: the table of the run."""

FILES = ("plan.parquet", "sweep.json", "config.yaml")
"""Sent as they are, or with credentials masked."""

SAMPLES = "samples"
"""Folder of the sample images in a run."""


class Shipment:
    """Sends files and remembers in the cursor which."""

    def __init__(self, store: Store, sweep: SweepFolder, cursor: Cursor) -> None:
        self.store, self.sweep, self.cursor = store, sweep, cursor
        self._images = ImageReader(sweep)

    def send_files(self, run_id: str, with_tables: bool = True) -> None:
        """The table, the plan, the configuration and the grids; the tables of a large sweep stay where they are."""
        with tempfile.TemporaryDirectory() as scratch:
            if with_tables:
                self._send_table(run_id, Path(scratch))
            for name in FILES if with_tables else FILES[1:]:
                path = self.sweep.path / name
                if path.is_file():
                    self._send(run_id, redacted_text(path, Path(scratch)), name, original=path)
        for path in sorted(self.sweep.path.glob("grid*.png")):
            self._send(run_id, path, path.name)

    def send_samples(self, run_id: str, samples: Sequence[Sample]) -> None:
        """Images, also out of the blocks they are packed in; one that is gone is left out."""
        for sample in samples:
            key = f"{run_id}/{SAMPLES}/{sample.name}"
            if self.cursor.sent.artifacts.get(key) == sample.image_sha256:
                continue
            try:
                data = self._images.read(asdict(sample))
            except OSError:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / sample.name
                path.write_bytes(data)
                _log(self.store, run_id, path, f"{SAMPLES}/{sample.name}")
            self.cursor.sent.artifacts[key] = sample.image_sha256

    def _send_table(self, run_id: str, scratch: Path) -> None:
        key = f"{run_id}/{ROWS}"
        state = fingerprint([(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in self.sweep.parts()])
        if self.cursor.sent.artifacts.get(key) != state:
            write_table(self.sweep, scratch / ROWS)
            _log(self.store, run_id, scratch / ROWS, ROWS)
            self.cursor.sent.artifacts[key] = state

    def _send(self, run_id: str, path: Path, name: str, original: Path | None = None) -> None:
        """One artifact, unless this very file was sent before."""
        found = (original or path).stat()
        key, state = f"{run_id}/{name}", fingerprint([found.st_size, found.st_mtime_ns])
        if self.cursor.sent.artifacts.get(key) != state:
            _log(self.store, run_id, path, name)
            self.cursor.sent.artifacts[key] = state


def log_grid(target: Target, run_ids: Sequence[str], files: Sequence[Path]) -> None:
    """Add the pictures of a comparison to the runs of the sweeps that it compares.

    Raises: TrackingError.
    """
    store = open_store(target)
    for run_id in run_ids:
        for path in files:
            _log(store, run_id, path, path.name)


def fingerprint(facts: object) -> str:
    """16 hex digits that change when the facts do."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _log(store: Store, run_id: str, path: Path, name: str) -> None:
    parent = PurePosixPath(name).parent
    store.call(store.client.log_artifact, run_id, str(path), None if parent == PurePosixPath() else str(parent))
