"""Records of weight files as a Parquet file: one row a file, the same columns whatever the files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BLOCK = pa.struct(
    [
        ("block", pa.string()),
        ("modules", pa.int32()),
        ("rank_min", pa.int32()),
        ("rank_max", pa.int32()),
        ("alpha_min", pa.float64()),
        ("alpha_max", pa.float64()),
    ]
)

SCHEMA = pa.schema(
    [
        ("option", pa.string()),
        ("fault", pa.string()),
        ("path", pa.string()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("kind", pa.string()),
        ("format", pa.string()),
        ("size", pa.int64()),
        ("family", pa.string()),
        ("variant", pa.string()),
        ("parts", pa.list_(pa.string())),
        ("pruning", pa.string()),
        ("dtype", pa.string()),
        ("parameters", pa.int64()),
        ("cross_attention_width", pa.int32()),
        ("embedding_widths", pa.list_(pa.int32())),
        ("embedding_vectors", pa.int32()),
        ("latent_channels", pa.int32()),
        ("image_embedding_width", pa.int32()),
        ("image_hidden_width", pa.int32()),
        ("prediction_type", pa.string()),
        ("zero_snr", pa.bool_()),
        ("trigger_words", pa.list_(pa.string())),
        ("metadata", pa.map_(pa.string(), pa.string())),
        ("foreign", pa.list_(pa.string())),
        ("algorithm", pa.string()),
        ("modules", pa.int32()),
        ("transformer_width", pa.int32()),
        ("rank", pa.int32()),
        ("alpha", pa.float64()),
        ("blocks", pa.list_(_BLOCK)),
        ("summary", pa.string()),
        ("sha256", pa.string()),
        ("autov1", pa.string()),
        ("autov2", pa.string()),
        ("autov3", pa.string()),
        ("a1111_short", pa.string()),
    ]
)
"""What `sdbatch inspect` and `sdbatch models` write; null where a file has none, or cannot be read (then `fault` says why)."""


def write_parquet(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the records. Side effects: replaces the file, whole or not at all."""
    rows = [{**record, "metadata": list(record["metadata"].items()) if "metadata" in record else None} for record in records]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    temporary = path.with_name(f".tmp-{path.name}")
    pq.write_table(table, temporary)
    temporary.replace(path)
