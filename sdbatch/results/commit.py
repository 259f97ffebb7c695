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

from sdbatch.errors import FolderError
from sdbatch.results.block import Packing, pack, rows_in
from sdbatch.results.disk import explained, publish, replace, sync_folders, write_temporary
from sdbatch.results.folder import LATER, SweepFolder
from sdbatch.results.keys import SEAL, Keys, decode, encode, footer_at, keys_end, keys_of
from sdbatch.results.row import Row, table_of

_SAME = ("image_id", "status", "image_sha256")
"""Two rows equal in these record the same outcome."""

_COMPRESSED_ROWS = 16
_LARGE_ROWS = 1000


def commit_block(folder: SweepFolder, place: tuple[int, int], rows: Sequence[Row], images: Mapping[str, bytes], room: int = 0) -> None:
    """Commit a block: `images` by their path in the folder, then `rows` as the part of `place` (shard, block).

    A part that is there already is left alone (the first writer wins); rows it does not hold go to a later one.
    When this returns, every row is committed and survives a loss of power.

    Raises: FolderError when the file system refuses; then none of the rows is committed.
    """
    write_images(folder, images)
    publish_rows(folder, place, rows, room)


def commit_packed(
    folder: SweepFolder, place: tuple[int, int], rows: Sequence[Row], images: Mapping[str, bytes], packing: Packing, room: int
) -> list[Row]:
    """As `commit_block`, with `images` by their id in one file; returns the rows as they are committed.

    Of a block that is there already the rows in it count: its writer died before it could commit them, or did.
    """
    shard, block = place
    left = [row for row in rows if row["image_id"] in images]
    committed = [row for row in rows if row["image_id"] not in images]
    while left:
        final = folder.block(shard, block, packing.suffix, room)
        make_folders([final.parent], folder.path)
        placed, data = pack(packing, final.relative_to(folder.path).as_posix(), left, images)
        if publish(write_temporary(final, data), final):
            committed += placed
            left = []
        else:
            try:
                there = {row["image_id"]: row for row in rows_in(final)}
            except FolderError:
                folder.set_aside([final])
                continue
            committed += [there[row["image_id"]] for row in left if row["image_id"] in there]
            left = [row for row in left if row["image_id"] not in there]
            block += LATER
        sync_folders([final.parent])
    publish_rows(folder, place, committed, room)
    return committed


def publish_rows(folder: SweepFolder, place: tuple[int, int], rows: Sequence[Row], room: int = 0) -> None:
    """Write rows as one new part at `place` (shard, block), or after it where that is taken."""
    shard, block = place
    left = list(rows)
    final = folder.part(shard, block, room)
    if final.parent != folder.rows:
        make_folders([final.parent], folder.rows)
    while left:
        if publish(write_temporary(final, part_bytes(table_of(left))), final):
            break
        left = _rows_missing_in(final, left)
        block += LATER
        final = folder.part(shard, block, room)
    # Also when all rows were there: their writer may have died before its own flush.
    sync_folders([final.parent])


def part_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file in which a flipped bit is an error, not another value.

    Pages carry checksums, as every reader may check. The footer has none in Parquet (a flipped bit there renames a
    column), so a seal over the whole file lies before it, where the format allows bytes that belong to no page; so do
    the keys of the rows.
    """
    sink = io.BytesIO()
    # Most of a small part is its footer: dictionaries and statistics then cost time and save nothing.
    large = table.num_rows >= _LARGE_ROWS
    pq.write_table(
        table,
        sink,
        compression="zstd" if table.num_rows >= _COMPRESSED_ROWS else "none",
        use_dictionary=large,
        write_statistics=large,
        write_page_checksum=True,
        store_schema=False,  # Arrow's own, which says nothing more here: half of a small part
    )
    data = sink.getvalue()
    footer = footer_at(data)
    pages, tail = data[:footer] + encode(keys_of(table)), data[footer:]
    return pages + SEAL + zlib.crc32(tail, zlib.crc32(pages)).to_bytes(4, "little") + tail


def read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of one part.

    Raises: ArrowException when it is damaged; OSError when the file cannot be read.
    """
    data = _read_sealed(part)
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def check_keys(part: Path) -> Keys:
    """The keys of a part, all bytes of which are checked.

    Raises: as `read_part`.
    """
    data = _read_sealed(part)
    return decode(data, keys_end(data))


def _read_sealed(part: Path) -> bytes:
    """All bytes at once: the seal needs them, and a file that changes under the reader cannot hurt."""
    data = part.read_bytes()
    end = keys_end(data)
    footer = footer_at(data)
    whole = memoryview(data)
    if zlib.crc32(whole[footer:], zlib.crc32(whole[:end])) != int.from_bytes(data[footer - 4 : footer], "little"):
        raise pa.ArrowInvalid("its checksum is wrong: some bits of it changed")
    return data


def make_folders(parents: Sequence[Path], above: Path) -> None:
    """Make folders inside `above` that are not there yet, to stay."""
    missing = [parent for parent in sorted(set(parents)) if not parent.is_dir()]
    for parent in missing:
        with explained("cannot make", parent):
            parent.mkdir(parents=True, exist_ok=True)
    if missing:
        sync_folders({above, *(parent.parent for parent in missing)})


def write_images(folder: SweepFolder, images: Mapping[str, bytes]) -> None:
    """Write images by their path in the folder, to stay; over what may be there."""
    finals = {folder.path / path: data for path, data in images.items()}
    folders = {final.parent for final in finals}
    make_folders(list(folders - {folder.images}), folder.images)
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
