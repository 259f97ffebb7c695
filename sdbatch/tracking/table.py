"""Files as they are sent: the rows in one table, and nothing with a password in it."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import iter_rows
from sdbatch.results.schema import SCHEMA
from sdbatch.tracking.target import redact

ROWS_PER_GROUP = 4096
"""Rows of a row group; parts of few rows are collected until there are so many."""

_TEXT_FILES = frozenset({".yaml", ".json", ".txt"})


def write_table(sweep: SweepFolder, path: Path) -> None:
    """All rows of a sweep as one Parquet file; memory holds one row group."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for part in iter_rows(sweep):
            waiting.append(redact_table(part))
            if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def redact_table(table: pa.Table) -> pa.Table:
    """The configuration of the rows with the credentials in its URLs masked; prompts stay as they are."""
    masked = pa.array([redact(text) if text and "://" in text else text for text in table["config"].to_pylist()], pa.string())
    return table.set_column(table.column_names.index("config"), SCHEMA.field("config"), masked)


def redacted_text(path: Path, scratch: Path) -> Path:
    """The file itself, or a copy in `scratch` where a text in it names credentials."""
    if path.suffix not in _TEXT_FILES:
        return path
    text = path.read_text(encoding="utf-8")
    masked = redact(text)
    if masked == text:
        return path
    copy = scratch / path.name
    copy.write_text(masked, encoding="utf-8")
    return copy
