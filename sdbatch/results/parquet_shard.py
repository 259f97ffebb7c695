"""A shard of a Hugging Face dataset: Parquet with the images inside, marked so that `datasets` shows them."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.results.row import Row
from sdbatch.results.schema import SCHEMA

GROUP_ROWS = 100
"""Rows per row group: what a reader must hold at once, images included."""


def write_parquet_shard(handle: IO[bytes], samples: Iterator[tuple[Row, bytes]]) -> None:
    """Write samples as one Parquet file; memory holds one row group."""
    schema = dataset_schema()
    with pq.ParquetWriter(handle, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(itertools.islice(samples, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist([_with_image(row, data) for row, data in group], schema=schema))


def dataset_schema() -> pa.Schema:
    """The schema of a row with the image itself in the column `image`, and the features of `datasets` in its metadata."""
    image = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
    fields = [image, *(field for field in SCHEMA if field.name != "image")]
    features = {"image": {"_type": "Image"}} | {field.name: _feature(field.type) for field in fields[1:]}
    info = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={**(SCHEMA.metadata or {}), b"huggingface": info.encode()})


def _feature(kind: pa.DataType) -> Any:
    """A type as `datasets` writes it; the list notation is the one that all its versions read."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    names = {"double": "float64", "timestamp[us, tz=UTC]": "timestamp[us, tz=UTC]"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def _with_image(row: Row, data: bytes) -> Row:
    return {**row, "image": {"bytes": data, "path": PurePosixPath(row["image"]).name}}
