"""Images in blocks: a tar (WebDataset) or a Parquet file (Hugging Face `datasets`) in place of a file for each image.

A block holds the successes of one block of the plan and has its name, so that two workers which make the same block make
the same file and the first one's counts. It is a whole, valid dataset file by itself. A row names its image as if the
block were a folder: `blocks/000042-00007.tar/<image_id>.png`.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.errors import FolderError
from sdbatch.results.folder import SweepFolder
from sdbatch.results.parquet_shard import write_parquet_shard
from sdbatch.results.row import Row
from sdbatch.results.schema import SCHEMA
from sdbatch.results.tar_shard import write_tar_shard

_BLOCK_IMAGE = re.compile(r"(?P<block>blocks/(?:\d{4,}/)?[^/]+\.(?:tar|parquet))/(?P<member>[^/]+)")
_TAR_RECORD = 10_240
_TAR_END = 1024


@dataclass(frozen=True, slots=True)
class Packing:
    """One kind of block."""

    suffix: str
    write: Callable[[Any, Any], list[int]]
    """Writes samples (row, bytes) to a file; returns where the bytes of each image begin, or nothing where that is not told."""
    read_rows: Callable[[Path], list[Row]]


def pack(packing: Packing, block: str, rows: Sequence[Row], images: Mapping[str, bytes]) -> tuple[list[Row], bytes]:
    """The rows with their images' places in `block` (a path in the sweep folder), and the bytes of that file."""
    named = [row | {"image": f"{block}/{row['image_id']}.png"} for row in rows]
    sink = io.BytesIO()
    offsets = packing.write(sink, iter([(row, images[row["image_id"]]) for row in named]))
    placed = [row | {"image_offset": offset} for row, offset in zip(named, offsets, strict=True)] if offsets else named
    return placed, sink.getvalue()


def container_of(image: str) -> tuple[str, str] | None:
    """The block's path in the sweep folder and the name inside it; None for an image that is a file of its own."""
    found = _BLOCK_IMAGE.fullmatch(image)
    return (found["block"], found["member"]) if found else None


def size_if_whole(path: Path) -> int:
    """The size of a block in bytes; 0 when it is gone or cut short."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAR_END))
            end = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    is_whole = size % _TAR_RECORD == 0 and not any(end) if path.suffix == ".tar" else end[-4:] == b"PAR1"
    return size if is_whole else 0


def rows_in(path: Path) -> list[Row]:
    """The rows that a block says it holds. Raises FolderError when it cannot be read."""
    try:
        return PACKINGS_BY_SUFFIX[path.suffix].read_rows(path)
    except (tarfile.TarError, pa.ArrowException, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FolderError(f"{path}: cannot be read ({reason}). Put it aside with: sdbatch verify OUT full=true repair=true") from error


class ImageReader:
    """Reads images wherever their rows say they are. Keeps one Parquet block in memory, so rows in order are read once."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._open: tuple[str, dict[str, bytes]] = ("", {})

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of a row's PNG; `row` has `image`, `image_bytes` and `image_offset`.

        Raises: OSError when it is not there; FolderError for a path that leads out of the folder.
        """
        image: str = row["image"]
        found = container_of(image)
        if found is None:
            return self._folder.file(image).read_bytes()
        block, member = found
        path = self._folder.file(block)
        if path.suffix == ".tar":
            with path.open("rb") as file:
                return os.pread(file.fileno(), row["image_bytes"], row["image_offset"])
        if self._open[0] != block:
            self._open = (block, _images_in_parquet(path))
        try:
            return self._open[1][member]
        except KeyError:
            raise FileNotFoundError(2, "not in its block", image) from None


def _images_in_parquet(path: Path) -> dict[str, bytes]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            column = file.read(columns=["image"])["image"]
    except pa.ArrowException as error:
        raise OSError(5, f"not a readable Parquet file: {str(error).splitlines()[0]}", str(path)) from error
    return {item["path"]: item["bytes"] for item in column.to_pylist()}


def _rows_in_tar(path: Path) -> list[Row]:
    rows: list[Row] = []
    offset = 0
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            if member.name.endswith(".png"):
                offset = member.offset_data
            elif member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                rows.append(json.load(file) | {"image_offset": offset})
    return rows


def _rows_in_parquet(path: Path) -> list[Row]:
    block = f"{path.parent.name}/{path.name}" if path.parent.name == "blocks" else f"blocks/{path.parent.name}/{path.name}"
    names = [name for name in SCHEMA.names if name != "image"]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.read(columns=[*names, "image.path"]).to_pylist()
    return [row | {"image": f"{block}/{row['image']['path']}"} for row in rows]


def _write_parquet(handle: Any, samples: Iterable[tuple[Row, bytes]]) -> list[int]:
    write_parquet_shard(handle, iter(samples))
    return []


PACKINGS = {
    "webdataset": Packing("tar", write_tar_shard, _rows_in_tar),
    "parquet": Packing("parquet", _write_parquet, _rows_in_parquet),
}
"""`output.format` -> how its blocks are written."""
PACKINGS_BY_SUFFIX = {f".{packing.suffix}": packing for packing in PACKINGS.values()}
