"""The header of a safetensors file, checked more strictly than the library does.

Source: the format's README (8 bytes length, JSON header, data without holes). Beyond it: duplicate names are refused,
and length, count, dims and names are capped, because a legal header of 97 MB costs the library 12 s and 1 GB.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

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
    if not parsed:
        _check_layout([], size - body)
        return Header(path, "safetensors", size, {}, metadata)
    columns = _to_columns(parsed)
    shapes = _check_columns(columns, limits)
    _check_layout(sorted(zip(columns.begins, columns.ends, columns.names, strict=True)), size - body)
    infos = map(TensorInfo._make, zip(columns.dtypes, shapes, map(body.__add__, columns.begins), strict=True))
    return Header(path, "safetensors", size, dict(zip(columns.names, infos, strict=True)), metadata)


class _Columns(NamedTuple):
    """What a header says of its tensors, by column: to check a column costs a fraction of checking each tensor."""

    names: Sequence[str]
    dtypes: Sequence[Any]
    shapes: Sequence[Any]
    begins: Sequence[Any]
    ends: Sequence[Any]

    def blame(self, bad: Iterable[bool]) -> str:
        """The name, fit for a message, of the first tensor of which this is true."""
        return shown(next(itertools.compress(self.names, bad)))


def _read_length(descriptor: int, size: int, limits: Limits) -> int:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > size - 8:
        raise FlawError(f"its header should have {length} bytes, but the file has only {size}. {_AGAIN}")
    if length > limits.header_bytes:
        raise FlawError(f"its header has {to_size(length)}, more than {to_size(limits.header_bytes)}. {_AGAIN}")
    return length


def _parse(text: bytes) -> dict[str, Any]:
    parsed = _to_object(text)
    # A name that is there twice leaves more strings in the text than were parsed; to look at every pair costs half as much again.
    if text.count(b'"') - _count_escaped(text) != 2 * _count_strings(parsed):
        parsed = _to_object(text, object_pairs_hook=_to_dict)
    return parsed


_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _count_escaped(text: bytes) -> int:
    """Quotes that are part of a string."""
    return _ESCAPED.findall(text).count(b'"') if b"\\" in text else 0


def _count_strings(parsed: dict[str, Any]) -> int:
    """Of a header with nothing but five for each tensor (its name, dtype, shape, data_offsets and the dtype's) and metadata of text."""
    metadata = parsed.get("__metadata__")
    of_metadata = 1 + 2 * len(cast(dict[str, Any], metadata)) if isinstance(metadata, dict) else 0
    return of_metadata + 5 * (len(parsed) - ("__metadata__" in parsed))


def _to_object(text: bytes, **hooks: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, **hooks)
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


_PARTS = operator.itemgetter("dtype", "shape", "data_offsets")


def _to_columns(parsed: dict[str, Any]) -> _Columns:
    try:
        dtypes, shapes, offsets = zip(*map(_PARTS, parsed.values()), strict=True)
        begins, ends = zip(*offsets, strict=True)
    except (TypeError, KeyError, ValueError):
        name = next(name for name, entry in parsed.items() if not _is_described(entry))
        raise FlawError(f"tensor `{shown(name)}` is not described by dtype, shape and two data_offsets. {_AGAIN}") from None
    return _Columns(list(parsed), dtypes, shapes, begins, ends)


def _is_described(entry: Any) -> bool:
    return isinstance(entry, dict) and {"dtype", "shape"} <= entry.keys() and _is_pair(cast(dict[str, Any], entry).get("data_offsets"))


def _is_pair(offsets: Any) -> bool:
    return isinstance(offsets, list) and len(cast(list[Any], offsets)) == 2


def _check_columns(columns: _Columns, limits: Limits) -> list[tuple[int, ...]]:
    """Refuse what is no description of a tensor; give the shapes. Of what is wrong, the first tensor is named."""
    names, dtypes, shapes, begins, ends = columns
    if max(map(len, names)) > limits.name_chars or not "".join(names).isprintable():
        bad = next(name for name in names if len(name) > limits.name_chars or not name.isprintable())
        raise FlawError(f"a tensor has the unusable name `{shown(bad, 80)}`. {_AGAIN}")
    if set(map(type, dtypes)) != {str} or not set(dtypes) <= DTYPE_BITS.keys():
        unknown = [type(dtype) is not str or dtype not in DTYPE_BITS for dtype in dtypes]
        dtype = dtypes[unknown.index(True)]
        raise FlawError(f"tensor `{columns.blame(unknown)}` has the unknown dtype {shown(dtype, 40)}. {_AGAIN}")
    if set(map(type, shapes)) != {list} or max(map(len, shapes)) > limits.dims:
        name = columns.blame(type(shape) is not list or len(shape) > limits.dims for shape in shapes)
        raise FlawError(f"tensor `{name}` has no shape of at most {limits.dims} dimensions. {_AGAIN}")
    numbers = [*itertools.chain.from_iterable(shapes), *begins, *ends]
    # The types too: to Python, true is 1.
    if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) >= 2**63:
        name = columns.blame(not all(map(_is_natural, (*shape, *span))) for shape, *span in zip(shapes, begins, ends, strict=True))
        raise FlawError(f"tensor `{name}` has a shape or offset that is not a natural number. {_AGAIN}")
    return _check_sizes(columns)


def _is_natural(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _check_sizes(columns: _Columns) -> list[tuple[int, ...]]:
    kinds = list(zip(columns.dtypes, map(tuple, columns.shapes), strict=True))
    # A large file has few kinds of tensors.
    bits = {(dtype, shape): math.prod(shape) * DTYPE_BITS[dtype] for dtype, shape in set(kinds)}
    wanted = list(map(bits.__getitem__, kinds))
    present = [8 * length for length in map(operator.sub, columns.ends, columns.begins)]
    if wanted != present:
        at = next(at for at, length in enumerate(present) if wanted[at] != length)
        name, (dtype, shape) = shown(columns.names[at]), kinds[at]
        raise FlawError(f"tensor `{name}` of shape {list(shape)} in {dtype} does not fill its {present[at] // 8} bytes. {_AGAIN}")
    return [shape for _, shape in kinds]


def _check_layout(spans: list[tuple[int, int, str]], present: int) -> None:
    """Data, sorted by where it begins, must lie without holes and overlaps and end with the file."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            fault = "overlaps another tensor" if begin < reached else "leaves a hole before it"
            raise FlawError(f"tensor `{shown(name)}` {fault}. {_AGAIN}")
        reached = end
    if reached > present:
        raise FlawError(f"{to_size(present)} of {to_size(reached)} present (truncated download?). Download it again.")
    if reached < present:
        raise FlawError(f"{present - reached} bytes follow the last tensor. {_AGAIN}")
