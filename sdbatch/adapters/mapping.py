"""Maps the tensors of a safetensors file where they lie: no copy, and no byte is read before it is used."""

from __future__ import annotations

import mmap
import os
from math import prod

import torch
from torch import Tensor

from sdbatch.weights.header import FlawError, Header, TensorInfo

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,
}
"""Safetensors' names of the element types that torch can compute with; the others are smaller than a byte."""


def map_safetensors(header: Header) -> dict[str, Tensor]:
    """Every tensor of the file, in the order in which they lie there. Writing to one changes memory, never the file.

    Raises:
        FlawError: a dtype that torch lacks, or the file is another one by now.
        OSError: it cannot be opened or mapped.
    """
    with header.path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != header.size:
            raise FlawError("changed while it was being read. Wait until it is complete, then run again.")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # more is read ahead of each page that is touched
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    placed = sorted(header.tensors.items(), key=lambda item: item[1].start or 0)
    return {name: _view(memory, name, info) for name, info in placed}


def _view(memory: mmap.mmap, name: str, info: TensorInfo) -> Tensor:
    if (dtype := DTYPES.get(info.dtype)) is None:
        raise FlawError(f"its tensor {name} holds {info.dtype}, with which torch cannot compute. Use another version of the file.")
    assert info.start is not None, "headers of safetensors say where each tensor lies"
    if not (count := prod(info.shape)):
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=info.start).view(info.shape)
