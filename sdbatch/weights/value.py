"""The few small tensors whose values say something: LoRA's alphas, and one bias that tells v-prediction."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from math import prod

from sdbatch.weights.header import DTYPE_BITS, Header

MAX_VALUES = 4096
"""Larger tensors are not read here."""

_CODES = {"F16": "e", "F32": "f", "F64": "d", "I64": "q", "I32": "i"}


def read_values(header: Header, names: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """The numbers of these small tensors of a safetensors file; what cannot be read is left out."""
    found: dict[str, tuple[float, ...]] = {}
    wanted = [name for name in names if header.tensors[name].start is not None]
    if not wanted:
        return found
    try:
        with header.path.open("rb", buffering=0) as file:
            for name in wanted:
                dtype, shape, start = header.tensors[name]
                count = prod(shape)
                if start is None or count > MAX_VALUES or not (dtype in _CODES or dtype == "BF16"):
                    continue
                content = os.pread(file.fileno(), count * DTYPE_BITS[dtype] // 8, start)
                found[name] = _decode(content, dtype, count)
    except (OSError, struct.error):
        # The file went away or was cut since its header was read; the loader will say so.
        return found
    return found


def _decode(content: bytes, dtype: str, count: int) -> tuple[float, ...]:
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        wide = b"".join(b"\0\0" + content[at : at + 2] for at in range(0, len(content), 2))
        return struct.unpack(f"<{count}f", wide)
    return struct.unpack(f"<{count}{_CODES[dtype]}", content)
