"""How often each cell was being made when its worker died: what finds the image that kills."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sdbatch.results.disk import Process, explained, write_file


class Crashes:
    """The counts of a sweep folder's claims. Each supervisor writes a file of its own; workers read the sum."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "crashes"

    def read(self) -> dict[str, int]:
        """Image id -> crashes."""
        counts: dict[str, int] = {}
        for path in self.folder.glob("*.json"):
            for image_id, count in _load(path).items():
                counts[image_id] = counts.get(image_id, 0) + count
        return counts

    def add(self, image_ids: Iterable[str]) -> dict[str, int]:
        """Count one more crash for each of these cells; returns the counts of all supervisors."""
        own = Process.own()
        path = self.folder / f"{own.machine.replace('/', '-')}-{own.pid}-{own.start}.json"
        counts = _load(path)
        for image_id in image_ids:
            counts[image_id] = counts.get(image_id, 0) + 1
        with explained("cannot write in", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(counts).encode())
        return self.read()


def _load(path: Path) -> dict[str, int]:
    try:
        return dict[str, int](json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
