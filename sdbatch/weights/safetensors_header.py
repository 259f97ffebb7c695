"""The header of a safetensors file, checked more strictly than the library does.

Source: the format's README (8 bytes length, JSON header, data without holes). Beyond it: duplicate names are refused,
and length, count, dims and names are capped, because a legal header of 97 MB costs the library 12 s and 1 GB.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, cast

from sdbatch.weights.header import DTYPE_BITS, FlawError, Header, Limits, TensorInfo, shown, to_size

_AGAIN = "The file is damaged or made up: download it again."


def read_safetensors(path: Path, descriptor: int, size: int, limits: Limits) -> Header:
    """Read and check the header of an open safetensors file.

    Raises: FlawError.
    """
    length = _read_length(descriptor, size, limits)
    body = 8 + length
    parsed = _parse(os.pread(descriptor, length, 8))
    metadata = _check_metadata(parsed.pop("__metadata__", {}))
    if len(parsed) > limits.tensors:
        raise FlawError(f"names {len(parsed)} tensors, more than {limits.tensors}. {_AGAIN}")
    spans = [_check_tensor(name, entry, limits) for name, entry in parsed.items()]
    _check_layout(spans, list(parsed), size - body)
    tensors = {name: TensorInfo(dtype, shape, body + begin) for name, (dtype, shape, begin, _) in zip(parsed, spans, strict=True)}
    return Header(path, "safetensors", size, tensors, metadata)


_NATURAL = {int}

_Span = tuple[str, tuple[int, ...], int, int]
"""dtype, shape, begin, end."""


def _read_length(descriptor: int, size: int, limits: Limits) -> int:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > size - 8:
        raise FlawError(f"its header should have {length} bytes, but the file has only {size}. {_AGAIN}")
    if length > limits.header_bytes:
        raise FlawError(f"its header has {to_size(length)}, more than {to_size(limits.header_bytes)}. {_AGAIN}")
    return length


def _parse(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_to_dict, parse_constant=_refuse_constant)
    except RecursionError:
        raise FlawError(f"its header is nested too deeply. {_AGAIN}") from None
    except ValueError:
        raise FlawError(f"its header is not valid JSON. {_AGAIN}") from None
    if not isinstance(parsed, dict):
        raise FlawError(f"its header is not a JSON object. {_AGAIN}")
    return cast(dict[str, Any], parsed)


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in found if names.count(name) > 1)
        raise FlawError(f"its header names `{shown(double)}` twice. {_AGAIN}")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise FlawError(f"its metadata is not a table. {_AGAIN}")
    for value in cast(dict[str, object], metadata).values():
        if not isinstance(value, str):
            raise FlawError(f"its metadata holds something else than text. {_AGAIN}")
    return cast(dict[str, str], metadata)


def _check_tensor(name: str, entry: Any, limits: Limits) -> _Span:
    if len(name) > limits.name_chars or not name.isprintable():
        raise FlawError(f"a tensor has the unusable name `{shown(name, 80)}`. {_AGAIN}")
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FlawError(f"tensor `{shown(name)}` is not described by dtype, shape and two data_offsets. {_AGAIN}") from None
    bits = DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise FlawError(f"tensor `{shown(name)}` has the unknown dtype {shown(dtype, 40)}. {_AGAIN}")
    if type(shape) is not list or len(shape) > limits.dims:
        raise FlawError(f"tensor `{shown(name)}` has no shape of at most {limits.dims} dimensions. {_AGAIN}")
    numbers: list[Any] = [*shape, begin, end]
    if set(map(type, numbers)) != _NATURAL or min(numbers) < 0 or max(numbers) >= 2**63:
        raise FlawError(f"tensor `{shown(name)}` has a shape or offset that is not a natural number. {_AGAIN}")
    if math.prod(shape) * bits != (end - begin) * 8:
        raise FlawError(f"tensor `{shown(name)}` of shape {shape} in {dtype} does not fill its {end - begin} bytes. {_AGAIN}")
    return dtype, tuple(shape), begin, end


def _check_layout(spans: list[_Span], names: list[str], present: int) -> None:
    """Data must lie without holes and overlaps and end with the file."""
    reached = 0
    for begin, end, name in sorted((span[2], span[3], name) for span, name in zip(spans, names, strict=True)):
        if begin != reached:
            fault = "overlaps another tensor" if begin < reached else "leaves a hole before it"
            raise FlawError(f"tensor `{shown(name)}` {fault}. {_AGAIN}")
        reached = end
    if reached > present:
        raise FlawError(f"{to_size(present)} of {to_size(reached)} present (truncated download?). Download it again.")
    if reached < present:
        raise FlawError(f"{present - reached} bytes follow the last tensor. {_AGAIN}")
