"""The tensors of a checkpoint of any layout under common names, mapped from disk and read only when they are used."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdbatch.adapters.piece import split
from sdbatch.adapters.read import SCALES, Tensors, map_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.naming import Piece
from sdbatch.naming.file import to_pieces
from sdbatch.weights.folder_header import list_weights
from sdbatch.weights.header import Header
from sdbatch.weights.reader import read_header


@dataclass(frozen=True, slots=True)
class Source:
    """A weight file or diffusers folder."""

    file: WeightFile
    header: Header
    raw: Tensors
    """Every tensor under the file's own name."""
    pieces: dict[str, Piece]
    """The file's own name -> what it is in common names; names that belong to no model are not here."""
    tensors: Tensors
    """Every tensor of the model under its common name: views of the raw ones."""
    mapped: frozenset[str]
    """The file's own names of the tensors that are mapped from disk."""

    def release(self, own: str) -> None:
        """Give back the memory that reading a tensor took. Its bytes stay on disk and are read again when needed."""
        if own in self.mapped and _MADVISE is not None and self.raw[own].is_contiguous():
            _release(self.raw[own])

    @property
    def components(self) -> tuple[str, ...]:
        """The components that it holds, in its own order."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.tensors))

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its author wrote about it."""
        return self.header.metadata


def open_source(file: WeightFile) -> Source:
    """Map a checkpoint, or a part of one.

    Raises:
        WeightFileError: missing, damaged, or no weights of a known layout.
    """
    path = Path(file.path)
    header = read_header(path)
    raw: Tensors = {}
    mapped: set[str] = set()
    for prefix, part in list_weights(path) if path.is_dir() else [("", path)]:
        tensors = map_tensors(WeightFile(file.name, str(part), file.sha256)).tensors
        raw.update({prefix + name: tensor for name, tensor in tensors.items()})
        if _is_mapped(tensors, part):
            mapped.update(prefix + name for name in tensors)
    if (scale := next((name for name in raw if name.endswith(SCALES)), None)) is not None:
        raise WeightFileError(
            f"{file.name}: its weights are float8 with scales beside them ({scale}), which are neither merged nor converted. "
            "Choose its fp16 or bf16 version."
        )
    pieces = to_pieces(raw.keys(), "model_index" in header.values)
    tensors = {name: tensor for own, piece in pieces.items() for name, tensor in split(piece, raw[own]).items()}
    if not tensors:
        shown = ", ".join(list(raw)[:3])
        raise WeightFileError(f"{file.name}: no weights of a model that sdbatch knows; it holds {shown}, ... Give a checkpoint.")
    return Source(file, header, raw, pieces, tensors, frozenset(mapped))


_PAGE = mmap.PAGESIZE
_MADVISE: Any = getattr(ctypes.CDLL(None), "madvise", None)


def _is_mapped(tensors: Tensors, path: Path) -> bool:
    """Whether the libraries mapped the file, as they do on Linux, and did not read it into memory."""
    address = next((tensor.data_ptr() for tensor in tensors.values() if tensor.nbytes), 0)
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        bounds, *_, name = line.split(maxsplit=5)
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        if first <= address < last:
            return name == str(path.resolve())
    return False


def _release(tensor: Tensor) -> None:
    start = -(-tensor.data_ptr() // _PAGE) * _PAGE
    length = (tensor.data_ptr() + tensor.nbytes) // _PAGE * _PAGE - start
    if length > 0:
        _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))
