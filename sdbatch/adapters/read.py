"""Reads the tensors of a weight file. What a file is, its header tells, which is checked first; its name is not believed.

Pickles are read with `weights_only=True` and never otherwise.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from sdbatch.adapters.finite import refuse_not_finite
from sdbatch.adapters.mapping import map_safetensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.cache import FileCache, FileState, cache_folder
from sdbatch.weights.folder_header import is_adapter, list_weights
from sdbatch.weights.header import FlawError, Header, shown, unreadable
from sdbatch.weights.read_ahead import read_ahead
from sdbatch.weights.reader import read_header

Tensors = dict[str, torch.Tensor]

SCALES = (".scale_weight", ".weight_scale")
"""How ComfyUI calls the scale of a weight in float8: until late in 2025, and since."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The tensors of one file, memory-mapped where the format allows, and its text metadata."""

    tensors: Tensors
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    mapped: tuple[Path, int] | None = None
    """The file and the address of its first byte, where that is known: not of pickles."""

    def read_ahead(self, tensors: Iterable[torch.Tensor]) -> None:
        """Have these of its tensors read from the disk beside what is done meanwhile: all of them will be used soon."""
        if self.mapped is not None:
            path, address = self.mapped
            begins = ((tensor.data_ptr() - address, tensor.nbytes) for tensor in tensors if tensor.nbytes)
            read_ahead(path, ((begin, begin + length) for begin, length in begins))


def read_tensors(file: WeightFile) -> TensorFile:
    """All tensors of a safetensors or pickle file, on the CPU and in the file's own dtype.

    Raises:
        WeightFileError: missing, damaged, no weight file, a pickle that holds more than tensors, or values that are no numbers.
    """
    path = Path(file.path)
    if is_adapter(path):
        # What peft saved: its settings lie beside its tensors.
        return TensorFile(read_folder(file, path), read_header(path).metadata)
    before = _state_of(path)
    found = map_tensors(file)
    # What was looked at once is not again while it is the same file, by the same signs as its hash is remembered; the state is
    # taken on both sides of the mapping, so that another file moved to this place meanwhile is not taken for it.
    seen = FileCache(cache_folder() / "finite")
    if before is None or _state_of(path) != before or not seen.load(before).get("finite"):
        found.read_ahead(found.tensors.values())
        refuse_not_finite(found.tensors, f"{file.name} ({path.name})")
        if before is not None and _state_of(path) == before:
            seen.store(before, {"finite": True})
    return found


def _state_of(path: Path) -> FileState | None:
    try:
        return FileState.of(path)
    except OSError:
        return None


def read_folder(file: WeightFile, folder: Path) -> Tensors:
    """All tensors of one component's folder in a diffusers layout: one file, or the parts of a split one.

    Raises:
        WeightFileError: as `read_tensors`, or there are no weights in it.
    """
    files = [path for _, path in list_weights(folder)] if folder.is_dir() else []
    if not files:
        raise WeightFileError(f"{file.name}: {folder} holds no weights. It must have diffusion_pytorch_model.safetensors or their like.")
    parts = [read_tensors(WeightFile(file.name, str(path), file.sha256)) for path in files]
    for part in parts:
        part.read_ahead(part.tensors.values())
    return {key: tensor for part in parts for key, tensor in part.tensors.items()}


def map_tensors(file: WeightFile) -> TensorFile:
    """The same without a look at any number, so that what is mapped is read only when it is used.

    Raises:
        WeightFileError: as `read_tensors`, but for values that are no numbers.
    """
    path = Path(file.path)
    header = read_header(path)
    return _map(file, header) if header.format == "safetensors" else TensorFile(_tensors_only(_load_pickle(file, path)))


def read_pickle(file: WeightFile) -> dict[Any, Any]:
    """The dictionary of a pickle file, for formats that hold settings beside their tensors.

    Raises:
        WeightFileError: as `read_tensors`, or it holds no dictionary.
    """
    path = Path(file.path)
    if read_header(path).format != "pickle":
        raise WeightFileError(f"{file.name}: {path} is no torch pickle (.pt), which this kind of file always is.")
    content = _load_pickle(file, path)
    if not isinstance(content, dict):
        raise WeightFileError(f"{file.name}: {path} holds no dictionary. Choose another file.")
    return cast("dict[Any, Any]", content)


def _map(file: WeightFile, header: Header) -> TensorFile:
    try:
        tensors = map_safetensors(header)
    except FlawError as flaw:
        raise WeightFileError(f"{file.name}: {shown(header.path)}: {flaw}") from None
    except OSError as fault:
        raise unreadable(header.path, fault) from fault
    starts = (tensor.data_ptr() - (header.tensors[name].start or 0) for name, tensor in tensors.items() if tensor.nbytes)
    address = next(starts, None)
    return TensorFile(tensors, header.metadata, None if address is None else (header.path, address))


def _load_pickle(file: WeightFile, path: Path) -> Any:
    try:
        # Only torch's own archives can be mapped; files of before 2020 are one pickle.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises half a dozen kinds here, and each means the same to a user
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightFileError(
            f"{file.name}: {path} cannot be read as plain tensors ({first_line}). It is damaged or holds code, which is never run; "
            "use its .safetensors version."
        ) from error


def _tensors_only(content: Any) -> Tensors:
    """The tensors of a (possibly nested) pickled checkpoint, keys of inner dicts joined by dots."""
    if not isinstance(content, dict):
        return {}
    mapping = cast("dict[Any, Any]", content)
    if isinstance(inner := mapping.get("state_dict"), dict):
        return _tensors_only(inner)
    found: Tensors = {}
    for key, value in mapping.items():
        if isinstance(value, torch.Tensor):
            found[str(key)] = value.detach()
        elif isinstance(value, dict):
            found.update({f"{key}.{name}": tensor for name, tensor in _tensors_only(value).items()})
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from disk.

    Raises:
        WeightFileError: missing or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightFileError(f"{what}: {path} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise WeightFileError(f"{what}: {path} must hold a JSON object.")
    return cast("dict[str, Any]", content)
