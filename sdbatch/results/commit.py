"""The commit of a block: its images first, then one Parquet part. The row is the commit.

Whatever moment the process dies at, a row that can be read has its whole image on the disk. An image without a row is
an orphan that the next run makes again, over it.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.results.disk import explained, publish, replace, sync_folders, write_temporary
from sdbatch.results.folder import SweepFolder
from sdbatch.results.row import Row, table_of

_SAME = ("image_id", "status", "image_sha256")
"""Two rows equal in these record the same outcome."""

_SEAL = b"sdbatch crc32 "
_LARGE_ROWS = 1000


def commit_block(folder: SweepFolder, place: tuple[int, int], rows: Sequence[Row], images: Mapping[str, bytes]) -> None:
    """Commit a block: `images` by their path in the folder, then `rows` as the part of `place` (shard, block).

    A part that is there already is left alone (the first writer wins); rows it does not hold go to the next free block.
    When this returns, every row is committed and survives a loss of power.

    Raises: FolderError when the file system refuses; then none of the rows is committed.
    """
    _write_images(folder, images)
    publish_rows(folder, place, rows)


def publish_rows(folder: SweepFolder, place: tuple[int, int], rows: Sequence[Row]) -> None:
    """Write rows as one new part at `place` (shard, block), or after it where that is taken."""
    shard, block = place
    left = list(rows)
    while left:
        final = folder.part(shard, block)
        if publish(write_temporary(final, part_bytes(table_of(left))), final):
            break
        left = _rows_missing_in(final, left)
        block += 1
    # Also when all rows were there: their writer may have died before its own flush.
    sync_folders([folder.rows])


def part_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file in which a flipped bit is an error, not another value.

    Pages carry checksums, as every reader may check. The footer has none in Parquet (a flipped bit there renames a
    column), so a seal over the whole file lies before it, where the format allows bytes that belong to no page.
    """
    sink = io.BytesIO()
    # Most of a small part is its footer: compression, dictionaries and statistics then cost time and save nothing.
    large = table.num_rows >= _LARGE_ROWS
    pq.write_table(
        table, sink, compression="zstd" if large else "none", use_dictionary=large, write_statistics=large, write_page_checksum=True
    )
    data = sink.getvalue()
    footer = _footer_at(data)
    return data[:footer] + _SEAL + zlib.crc32(data).to_bytes(4, "little") + data[footer:]


def read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of one part.

    Raises: ArrowException when it is damaged; OSError when the file cannot be read.
    """
    # All bytes at once: the seal needs them, and a file that changes under the reader cannot hurt.
    data = part.read_bytes()
    footer = _footer_at(data)
    start = footer - len(_SEAL) - 4
    if start < 0 or data[start : footer - 4] != _SEAL:
        raise pa.ArrowInvalid(f"not a whole part ({len(data)} bytes): cut short, or written by another program")
    if zlib.crc32(data[footer:], zlib.crc32(data[:start])) != int.from_bytes(data[footer - 4 : footer], "little"):
        raise pa.ArrowInvalid("its checksum is wrong: some bits of it changed")
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def _footer_at(data: bytes) -> int:
    """Where the footer begins; nonsense for what is no Parquet file."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _write_images(folder: SweepFolder, images: Mapping[str, bytes]) -> None:
    finals = {folder.path / path: data for path, data in images.items()}
    folders = {final.parent for final in finals}
    for parent in sorted(folders - {folder.images}):
        with explained("cannot make", parent):
            parent.mkdir(exist_ok=True)
        folders.add(folder.images)
    for final, data in finals.items():
        replace(write_temporary(final, data), final)
    sync_folders(folders)


def _rows_missing_in(part: Path, rows: Sequence[Row]) -> list[Row]:
    try:
        there = {_outcome(row) for row in read_part(part, _SAME).to_pylist()}
    except (pa.ArrowException, OSError):
        there = set[tuple[Any, ...]]()  # damaged, so it commits nothing; the reader reports it
    return [row for row in rows if _outcome(row) not in there]


def _outcome(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SAME)
