"""What was already sent where: a small file in the sweep folder, replaced whole or not at all.

It spares work and answers "how many are not sent yet"; it is not needed for being right. When it is lost, runs are
found again by their tags, and equal readings, parameters and artifacts are kept once by MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from sdbatch.results.disk import write_file
from sdbatch.tracking.target import Target

CURSOR = "tracking.json"
_VERSION = 1


@dataclass(slots=True)
class Sent:
    """What one experiment of one store has of a sweep."""

    run_id: str = ""
    """The sweep's run; empty when there is none yet."""
    images: int = 0
    """Rows that a finished projection covered."""
    groups: dict[str, str] = field(default_factory=dict[str, str])
    """By group id: a fingerprint of what was sent."""
    artifacts: dict[str, str] = field(default_factory=dict[str, str])
    """By name in the run: a fingerprint of the file that was sent."""


class Cursor:
    """The file, as far as it concerns one target."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.path = folder / CURSOR
        self.out = str(folder.absolute())
        self.key = f"{target.name}#{target.experiment}"
        self._all = _read(self.path)
        if self._all.get("out") != self.out and Path(str(self._all.get("out") or "/nonexistent")).exists():
            # The folder is a copy of another that still exists: that one owns the runs.
            self._all = {}
        self.sent = _parse(cast(Mapping[str, Any], self._all.get("stores", {})).get(self.key))

    def forget(self) -> None:
        """Begin anew: the store does not know the run any more."""
        self.sent = Sent()

    def save(self) -> None:
        """Replace the file."""
        stores = dict(cast(Mapping[str, Any], self._all.get("stores", {}))) | {self.key: asdict(self.sent)}
        self._all = {"version": _VERSION, "out": self.out, "stores": stores}
        write_file(self.path, (json.dumps(self._all, indent=1, sort_keys=True) + "\n").encode())


def knows_run(folder: Path, run_id: str) -> bool:
    """Whether the sweep in that folder was sent as this run."""
    stores = cast(Mapping[str, Any], _read(folder / CURSOR).get("stores", {}))
    return any(_parse(sent).run_id == run_id for sent in stores.values())


def _read(path: Path) -> dict[str, Any]:
    """The file's content; nothing for a file that is missing or damaged, as everything in it can be found again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    content = cast(dict[str, Any], found)
    return content if content.get("version") == _VERSION and isinstance(content.get("stores"), dict) else {}


def _parse(found: object) -> Sent:
    try:
        return Sent(**cast(dict[str, Any], found)) if isinstance(found, dict) else Sent()
    except TypeError:
        return Sent()
