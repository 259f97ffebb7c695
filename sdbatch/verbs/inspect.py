"""`sdbatch inspect FILE...`: what weight files are, from their headers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdbatch.errors import SdbatchError
from sdbatch.verbs.words import read_words

HIDDEN = ("blocks", "metadata", "path", "name")


def main(arguments: Sequence[str]) -> int:
    """Inspect. Returns 0, or 1 when a file cannot be read."""
    files = [word for word in arguments if "=" not in word or Path(word).exists()]
    words = read_words("inspect", [word for word in arguments if word not in files], (), {"json": "false", "hash": "true"})
    if not files:
        read_words("inspect", [], ("FILE...",), {"json": "false", "hash": "true"})
    from sdbatch.weights.hashes import Hasher
    from sdbatch.weights.index import Index
    from sdbatch.weights.inspection import inspect_file

    index, hasher, code = Index(), Hasher() if words["hash"] == "true" else None, 0
    for name in files:
        try:
            record = inspect_file(Path(name), index, hasher)
        except SdbatchError as error:
            sys.stderr.write(f"{error}\n")
            code = 1
            continue
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n" if words["json"] == "true" else to_text(record))
    return code


def to_text(record: dict[str, Any]) -> str:
    """A record as lines; what is unknown is left out."""
    shown = {key: value for key, value in record.items() if key not in HIDDEN and value not in (None, [], {}, "")}
    width = max(len(key) for key in shown)
    lines = [f"  {key.ljust(width)}  {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()]
    return "\n".join([str(record["path"]), *lines]) + "\n"
