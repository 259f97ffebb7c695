"""A shard of a Hugging Face dataset: Parquet with the images inside, marked so that `datasets` shows them."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.results.arrow import binaries, empty_table, strings
from sdbatch.results.row import Row, table_of
from sdbatch.results.schema import SCHEMA

_IMAGE_BYTES = "image.bytes"
GROUP_ROWS = 100
"""Rows per row group: what a reader must hold at once, images included."""


def write_parquet_shard(handle: IO[bytes], samples: Iterator[tuple[Row, bytes]]) -> None:
    """Write samples as one Parquet file; memory holds one row group."""
    schema = dataset_schema()
    others = [path for path in _leaves() if path != _IMAGE_BYTES]
    # A PNG gains nothing by compression or a dictionary, and its statistics would be two more copies of it.
    options: Any = {"compression": dict.fromkeys(others, "zstd"), "use_dictionary": others, "write_statistics": others}
    with pq.ParquetWriter(handle, schema, write_page_checksum=True, **options) as writer:
        while group := list(itertools.islice(samples, GROUP_ROWS)):
            writer.write_table(_table(group, schema))


@cache
def _leaves() -> list[str]:
    """The paths of all leaf columns, as Parquet calls them."""
    sink = io.BytesIO()
    pq.write_table(empty_table(dataset_schema()), sink)
    found = pq.ParquetFile(sink).schema
    return [found.column(number).path for number in range(len(found))]


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


def _table(group: Sequence[tuple[Row, bytes]], schema: pa.Schema) -> pa.Table:
    rows = table_of([row for row, _ in group])
    names = strings([PurePosixPath(row["image"]).name for row, _ in group])
    image = pa.StructArray.from_arrays([binaries([data for _, data in group]), names], fields=list(schema.field("image").type))
    return pa.table([image if name == "image" else rows[name] for name in schema.names], schema=schema)
