"""`sdbatch inspect FILE...`: what weight files are, from their headers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdbatch.errors import SdbatchError
from sdbatch.verbs.records import FORMS, write_records
from sdbatch.verbs.words import Option, read_names
from sdbatch.weights.header import shown

OPTIONS = {**FORMS, "hash": Option("true", "SHA-256, AutoV2, AutoV3 and A1111's short hash, which read the whole file")}
HIDDEN = ("blocks", "metadata", "path", "name", "size")


def main(arguments: Sequence[str]) -> int:
    """Inspect. Returns 0, or 1 when a file cannot be read."""
    files, words = read_names("inspect", arguments, ("FILE...",), OPTIONS)
    from sdbatch.weights.hashes import Hasher
    from sdbatch.weights.index import Index
    from sdbatch.weights.inspection import inspect_file

    index, hasher = Index(), Hasher() if words["hash"] == "true" else None
    records: list[dict[str, Any]] = []
    code = 0
    for name in files:
        try:
            records.append(inspect_file(Path(name), index, hasher))
        except SdbatchError as error:
            sys.stderr.write(f"{error}\n")
            code = 1
    write_records(records, words, lambda found: "".join(to_text(record) for record in found))
    return code


def to_text(record: dict[str, Any]) -> str:
    """A record as lines; what is unknown is left out."""
    facts = {key: value for key, value in record.items() if key not in HIDDEN and value not in (None, [], {}, "", False)}
    width = max(len(key) for key in facts)
    lines = [f"  {key.ljust(width)}  {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in facts.items()]
    return "\n".join([shown(record["path"]), *lines, *_block_lines(record["blocks"])]) + "\n"


def _block_lines(blocks: Sequence[dict[str, Any]]) -> list[str]:
    """Rank and alpha of an adapter's blocks: `down_1: 24 modules, rank 8-16, alpha 4`."""
    lines: list[str] = []
    for block in blocks:
        words = [f"{block['modules']} modules"]
        for what in ("rank", "alpha"):
            low, high = block[f"{what}_min"], block[f"{what}_max"]
            words += [f"{what} {_span(low, high)}"] if high is not None else []
        lines.append(f"    {block['block']}: {', '.join(words)}")
    return lines


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
