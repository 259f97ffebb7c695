"""What the header of a weight file says: names, shapes and dtypes of its tensors, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sdbatch.errors import WeightFileError

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "C128": 128,
}
"""Safetensors' names of the element types, and their bits."""


class TensorInfo(NamedTuple):
    """One tensor, unread."""

    dtype: str
    """A key of DTYPE_BITS."""
    shape: tuple[int, ...]
    start: int | None = None
    """Where its bytes begin in the file; None where that is not known (pickles, folders)."""


@dataclass(frozen=True, slots=True)
class Header:
    """All that is known of a file before a tensor is read."""

    path: Path
    format: str
    """`safetensors`, `pickle` or `folder`."""
    size: int
    """In bytes; of a folder: of its weight files."""
    tensors: dict[str, TensorInfo]
    """By name. Nested dictionaries of a pickle are joined by dots; parts of a folder are prefixed `unet.` and so on."""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    """As the author wrote it: never trusted, never shown raw."""
    values: dict[str, object] = field(default_factory=dict[str, object])
    """Plain numbers and strings beside the tensors of a pickle; the configs of a folder by part."""
    foreign: tuple[str, ...] = ()
    """Harmless classes that a pickle names and torch does not load by itself, such as numpy scalars."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a header may cost. Real files stay far below."""

    header_bytes: int = 16 * 2**20
    """Of a safetensors header; the largest real ones have a few MB."""
    tensors: int = 50_000
    dims: int = 8
    name_chars: int = 512
    pickle_bytes: int = 64 * 2**20
    pickle_ops: int = 1_000_000
    """A full Stable Diffusion checkpoint with its optimizer needs about 200,000."""
    archive_members: int = 60_000


DEFAULT_LIMITS = Limits()


class FlawError(Exception):
    """What is wrong with a file, without its name: `read_header` adds that. Never leaves this package."""


def shown(text: object, limit: int = 200) -> str:
    """A name from a file, fit for a message: no control characters, not endless."""
    plain = str(text)[: limit + 1]
    if not plain.isprintable():
        plain = "".join(char if char.isprintable() else "?" for char in plain)
    return plain if len(plain) <= limit else f"{plain[:limit]}..."


def unreadable(path: Path, fault: OSError) -> WeightFileError:
    """The error for a file that the system does not open."""
    if isinstance(fault, FileNotFoundError) and path.is_symlink():
        return WeightFileError(f"{shown(path)}: is a link to {shown(path.readlink())}, which is not there. Put the file there.")
    if isinstance(fault, FileNotFoundError):
        return WeightFileError(f"{shown(path)}: there is no such file. Check the path, or put the file there.")
    return WeightFileError(f"{shown(path)}: cannot be read ({fault.strerror}). Check its permissions.")


def to_size(count: int) -> str:
    """Bytes as people write them: `1.1 GB`."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
