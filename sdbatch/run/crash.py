"""How often each cell was being made when its worker died, and of what: finds the image that kills."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdbatch.results.disk import Process, explained, write_file


@dataclass(frozen=True, slots=True)
class Crash:
    """The deaths while one cell was being made."""

    times: int = 0
    cause: str = ""
    """Of the last one that is known."""


class Crashes:
    """The crashes of a sweep folder's claims. Each supervisor writes a file of its own; workers read the sum."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "crashes"

    def read(self) -> dict[str, Crash]:
        """Image id -> its crashes."""
        found: dict[str, Crash] = {}
        for path in self.folder.glob("*.json"):
            for image_id, (times, cause) in _load(path).items():
                found[image_id] = Crash(found.get(image_id, Crash()).times + times, cause)
        return found

    def add(self, image_ids: Iterable[str], cause: str) -> None:
        """Count one more crash for each of these cells."""
        own = Process.own()
        path = self.folder / f"{own.machine.replace('/', '-')}-{own.pid}-{own.start}.json"
        crashes = _load(path)
        for image_id in image_ids:
            crashes[image_id] = (crashes.get(image_id, (0, ""))[0] + 1, cause)
        with explained("cannot write in", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(crashes).encode())


def _load(path: Path) -> dict[str, tuple[int, str]]:
    try:
        return dict[str, tuple[int, str]](json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
