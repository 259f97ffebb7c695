"""Between Python values and Arrow without pandas.

pyarrow's own conversions (`pa.array`, `from_pylist`, `to_numpy`) import pandas, half a second of CPU in every worker and
in every verb that only looks. The detours here do not; a test holds it.
"""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import io
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json


def table_of_records(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Records as a table of exactly `schema`; a missing value is null, a wrong type or an unknown name raises."""
    data = "\n".join(json.dumps(record, default=_plain) for record in records).encode()
    table = pyarrow.json.read_json(
        io.BytesIO(data),
        # One block: a record may not straddle two.
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
    return pa.table([table[name] for name in schema.names], schema=schema)


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table of no rows."""
    return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)


def strings(values: Collection[str]) -> pa.Array:
    """An array of strings."""
    return _variable([value.encode() for value in values], pa.string())


def binaries(values: Sequence[bytes]) -> pa.Array:
    """An array of byte strings, of less than two gigabytes in all."""
    return _variable(values, pa.binary())


def _variable(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))])


def integers(values: npt.NDArray[np.int64]) -> pa.Array:
    """An array of 64-bit integers, sharing the memory."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def plain_values(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An array of 64-bit numbers, booleans or strings, None as null. Raises OverflowError: a larger integer."""
    validity = _bits([value is not None for value in values]) if None in values else None
    if pa.types.is_string(kind):
        texts = _variable([b"" if value is None else value.encode() for value in values], kind)
        return pa.Array.from_buffers(kind, len(values), [validity, *texts.buffers()[1:]])
    numbers = [value or 0 for value in values]
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, len(values), [validity, _bits(numbers)])
    data = np.array(numbers, np.float64 if pa.types.is_floating(kind) else np.int64)
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(data)])


def _bits(values: Sequence[Any]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(np.array(values, bool), bitorder="little"))


def numpy_of(column: pa.ChunkedArray, kind: type[np.generic] = np.int64) -> npt.NDArray[Any]:
    """A column of 64-bit numbers, 0 where it is null."""
    chunks = [_numbers(chunk, kind) for chunk in column.chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.empty(0, kind)


def _numbers(chunk: pa.Array, kind: type[np.generic]) -> npt.NDArray[Any]:
    validity, data = chunk.buffers()
    rows = slice(chunk.offset, chunk.offset + len(chunk))
    numbers = np.frombuffer(data, kind)[rows] if data else np.zeros(len(chunk), kind)
    if not chunk.null_count or validity is None:
        return numbers
    return np.where(np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[rows], numbers, kind(0))


def iter_texts(column: pa.ChunkedArray) -> Iterator[str]:
    """A column of strings, a null as the empty string. Five times as fast as `to_pylist`, for millions."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist() if len(chunk) else []
        text = data.to_pybytes() if data else b""
        for start, end in itertools.pairwise(ends):
            yield text[start:end].decode()


def _plain(value: object) -> str:
    assert isinstance(value, datetime), value
    return value.isoformat()
