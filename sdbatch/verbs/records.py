"""How `models` and `inspect` hand over what they know of weight files: lines for people, JSON lines, or a Parquet file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdbatch.verbs.words import Option

FORMS = {
    "json": Option("false", "a line of JSON for each"),
    "parquet": Option("", "write a table to this file"),
}
"""Options that choose the form."""


def write_records(records: list[dict[str, Any]], words: dict[str, str], to_text: Callable[[list[dict[str, Any]]], str]) -> None:
    """Write the records to standard output, or to the Parquet file that was asked for."""
    if words["parquet"]:
        from sdbatch.weights.table import write_parquet  # pyarrow: 0.2 s of CPU

        path = Path(words["parquet"])
        write_parquet(records, path)
        sys.stdout.write(f"{len(records)} files: {path}\n")
    elif words["json"] == "true":
        sys.stdout.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        sys.stdout.write(to_text(records))
