"""Write tiny weight files by hand: safetensors as 8 bytes, a JSON header and zeros; no torch needed."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BYTES = {"F64": 8, "F32": 4, "I64": 8, "F16": 2, "BF16": 2, "U8": 1, "F8_E4M3": 1}

Shape = Sequence[int]


def to_header(tensors: Mapping[str, Shape], dtype: str = "F16", metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, shape in tensors.items():
        end = reached + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, end]}
        reached = end
    return header


def write_raw(path: Path, header: str | bytes, body: bytes = b"", length: int | None = None) -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Shape],
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
    scalars: Mapping[str, float] | None = None,
) -> Path:
    """A file of zeros; `scalars` are tensors without dimensions that hold a number (LoRA's alpha)."""
    scalars = scalars or {}
    header = to_header({**tensors, **dict.fromkeys(scalars, ())}, dtype, metadata)
    code = {"F16": "<e", "F32": "<f", "F64": "<d"}
    body = b"".join(struct.pack(code[dtype], value) for value in scalars.values())
    zeros = sum(math.prod(shape) for shape in tensors.values()) * BYTES[dtype]
    write_raw(path, json.dumps(header))
    with path.open("ab") as out:
        out.truncate(path.stat().st_size + zeros)  # a hole in the file: full-size shapes cost no disk
        out.seek(0, 2)
        out.write(body)
    return path
