"""`sdbatch models [GROUP]`: every weight file that is an option, and what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.verbs.words import read_words


def main(arguments: Sequence[str]) -> int:
    """List. Returns the exit code."""
    groups = [word for word in arguments if "=" not in word]
    words = read_words("models", [word for word in arguments if "=" in word], (), {"paths": "models", "json": "false"})
    from sdbatch.weights.catalog import Catalog
    from sdbatch.weights.index import Index
    from sdbatch.weights.kinds import GROUPS
    from sdbatch.weights.record import to_record

    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"{group}: no group of weight files. {did_you_mean(group, GROUPS)}")
    listed = list(Index().list_catalog(Catalog([Path(root) for root in words["paths"].split(",")]), groups or None))
    if words["json"] == "true":
        for item in listed:
            facts = to_record(item.identity) if item.identity else {"path": str(item.path), "fault": item.fault}
            sys.stdout.write(json.dumps({"option": f"{item.group}={item.name}", **facts}, ensure_ascii=False) + "\n")
        return 0
    rows = [(f"{item.group}={item.name}", item.fault or describe_file(item.identity), str(item.path)) for item in listed]
    sys.stdout.write(to_columns(rows) or f"No weight files in {words['paths']}. Put them into models/checkpoints, models/loras, ...\n")
    return 0


def describe_file(identity: object) -> str:
    """What a file is, in a few words with its size in numbers."""
    from sdbatch.weights.fit import describe
    from sdbatch.weights.identify import Identity

    assert isinstance(identity, Identity)
    numbers = f"{identity.parameters / 1e6:.1f} M" if identity.parameters else ""
    return ", ".join(text for text in (describe(identity), numbers, identity.dtype or "") if text)


def to_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Text in aligned columns."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join(lines) + "\n"
