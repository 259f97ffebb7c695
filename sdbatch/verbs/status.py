"""`sdbatch status OUT`: how far a sweep is and what failed, read from its folder alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdbatch.errors import FolderError, harmless
from sdbatch.verbs.words import read_words

SHOWN_FAILURES = 20
SHOWN_CHARS = 200
"""Of what tells a failed image from others, which may be a prompt of any length."""


def main(arguments: Sequence[str]) -> int:
    """Print the state. Returns 0 when all is made, 1 when something failed or is left."""
    words = read_words("status", arguments, ("OUT",), {"json": "false"})
    from sdbatch.plan.store import PlanFile
    from sdbatch.results.folder import SweepFolder
    from sdbatch.results.reader import committed

    folder = SweepFolder(words["OUT"])
    if not folder.plan.is_file():
        raise FolderError(f"{words['OUT']}: there is no sweep here (no plan.parquet). Sweeps are the folders in outputs/.")
    plan = PlanFile(folder.plan)
    state = committed(folder)
    counts = {"ok": 0, "failed": 0, "nan": 0, "flat": 0, "left": 0}
    faulty: list[str] = []
    for ids, _ in plan.iter_ids():
        for image_id in ids:
            status = state.statuses.get(image_id, "left")
            counts[status] = counts.get(status, 0) + 1
            if status not in ("ok", "left"):
                faulty.append(image_id)
    facts = {"name": plan.name, "out": str(folder.path), "cells": plan.cells, **counts, "lost": len(state.lost)}
    if words["json"] == "true":
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(facts, folder.path, _failures(folder, set(faulty)), state.unreadable)) + "\n")
    return 0 if counts["ok"] == plan.cells else 1


def _failures(folder: Any, faulty: set[str]) -> list[str]:
    if not faulty:
        return []
    from sdbatch.results.reader import iter_rows
    from sdbatch.results.row import axes_of

    found: list[str] = []
    for table in iter_rows(folder, ["image_id", "status", "error", "axes", "seed", "prompt"]):
        for row in table.to_pylist():
            if row["image_id"] in faulty:
                axes = ", ".join(f"{key}={value}" for key, value in axes_of(row).items()) or f"seed={row['seed']}, {row['prompt'][:40]!r}"
                found.append(harmless(f"  {row['status']:<6} {row['image_id']}  {axes[:SHOWN_CHARS]}: {row['error']}".replace("\n", " ")))
    return found


def _lines(facts: dict[str, Any], out: Path, failures: list[str], unreadable: dict[Path, str]) -> list[str]:
    faults = facts["failed"] + facts["nan"] + facts["flat"]
    lines = [f"{facts['name']}: {facts['ok']} of {facts['cells']} images made, {faults} failed, {facts['left']} left ({out})"]
    lines += failures[:SHOWN_FAILURES]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"  ... and {len(failures) - SHOWN_FAILURES} more")
    if facts["lost"]:
        lines.append(f"  {facts['lost']} images have a row but their file is gone or cut; a resume makes them again")
    lines += [f"  {part.name} cannot be read: {reason}" for part, reason in unreadable.items()]
    if facts["ok"] < facts["cells"]:
        lines.append(f"Go on: sdbatch resume {out}")
    return lines
