"""The header of a torch checkpoint (`.ckpt .pt .pth .bin`): tensor names, shapes and dtypes, read without executing it.

Three layouts: a zip with `data.pkl` (torch since 1.6), a chain of pickles (before), and a bare pickle. An import that
weight files do not need is a refusal; tensors are described by the arguments of torch's rebuild functions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sdbatch.weights.archive import read_directory, read_member
from sdbatch.weights.header import DTYPE_BITS, FlawError, Header, Limits, TensorInfo, shown, to_size
from sdbatch.weights.pickle_walk import Call, Global, Persistent, Walker, describe_imports

MAX_NESTING = 8
"""Dictionaries within dictionaries; real files have three."""
MAX_NODES = 400_000
"""Values looked at. A small pickle can describe an endless tree by pointing at itself."""
MAX_VALUE_CHARS = 500

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_DTYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "complex128": "C128",
}
"""torch's dtypes -> safetensors' names."""

_STORAGES: dict[str, str] = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "UntypedStorage": "U8",
}

_TENSORS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_PARAMETERS = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})

_EXPECTED: frozenset[str] = frozenset(
    {f"torch.{name}" for name in (*_DTYPES, *_STORAGES, "Size", "device", "Tensor", "FloatTensor", "HalfTensor", "LongTensor")}
    | {f"torch._utils.{name}" for name in _TENSORS | _PARAMETERS}
    | {"torch.storage.UntypedStorage", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2"}
    | {"torch.serialization._get_layout", "collections.OrderedDict", "_codecs.encode"}
    | {"__builtin__.set", "builtins.set", "builtins.bytearray", "builtins.complex", "collections.Counter"}
)
"""Imports that torch's own `weights_only` loader takes as well."""

_HARMLESS: frozenset[str] = frozenset(
    {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"}
    | {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "torch.optim.adamw.AdamW", "torch.optim.adam.Adam"}
)
"""Imports of old training checkpoints that only describe; a loader must leave them out, torch refuses them."""

_WRAPPERS = ("state_dict", "params_ema", "params")
"""Keys under which trainers put the weights; the rest beside them is not part of the model."""


def read_pickle(path: Path, descriptor: int, size: int, limits: Limits) -> Header:
    """Read the header of an open torch checkpoint without executing it.

    Raises: FlawError.
    """
    start = os.pread(descriptor, len(_LEGACY_START), 0)
    if start[:2] == b"PK":
        walker = _open_archive(descriptor, size, limits)
    else:
        # Pickles come first, raw tensors follow: as much is read as pickles may have.
        walker = Walker(os.pread(descriptor, min(size, limits.pickle_bytes), 0), limits.pickle_ops)
        if start == _LEGACY_START:
            _skip_legacy_preface(walker)
    value = walker.walk()
    foreign = _check_imports(walker.imports)
    content = _Content(size, limits)
    content.add(_unwrap(value))
    return Header(path, "pickle", size, content.tensors, values=content.values, foreign=foreign)


def _open_archive(descriptor: int, size: int, limits: Limits) -> Walker:
    members = read_directory(descriptor, size, limits)
    if any("/code/" in name or name.endswith("constants.pkl") for name in members):
        raise FlawError("is a TorchScript program, which is code; not loaded. Use a .safetensors version.")
    pickles = [member for name, member in members.items() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise FlawError(f"is a zip archive with {len(pickles)} data.pkl, a torch checkpoint has one. If it is an archive, unpack it first.")
    return Walker(read_member(descriptor, pickles[0], limits.pickle_bytes), limits.pickle_ops)


def _skip_legacy_preface(walker: Walker) -> None:
    """Three small pickles come first: a magic number, the protocol's version, facts about the writing machine."""
    if walker.walk() != _LEGACY_MAGIC:
        raise FlawError("is no torch checkpoint. Use a .safetensors version.")
    walker.walk()
    walker.walk()


def _check_imports(imports: set[Global]) -> tuple[str, ...]:
    """Refuse unknown imports; returns those that torch does not load although they are harmless."""
    unknown = {wanted for wanted in imports if wanted.dotted not in _EXPECTED and wanted.dotted not in _HARMLESS}
    if unknown:
        raise FlawError(f"pickle asks to import {describe_imports(unknown)}; not loaded. Use a .safetensors version.")
    return tuple(sorted(wanted.dotted for wanted in imports if wanted.dotted in _HARMLESS))


def _unwrap(value: Any) -> Any:
    items = _to_items(value)
    for key in _WRAPPERS:
        if items is not None and _to_items(items.get(key)):
            # What lies beside the weights is kept where it is plain: epoch, global_step.
            plain = {name: other for name, other in items.items() if isinstance(other, (str, int, float))}
            return {**plain, **cast(dict[Any, Any], _to_items(items[key]))}
    return value


def _to_items(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, dict):
        return cast(dict[Any, Any], value)
    if isinstance(value, Call) and value.function == Global("collections", "OrderedDict"):
        return value.items
    return None


@dataclass(slots=True)
class _Content:
    """The tensors and plain values found in what a pickle describes."""

    size: int
    """Of the file, in bytes."""
    limits: Limits
    tensors: dict[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    values: dict[str, object] = field(default_factory=dict[str, object])
    nodes: int = 0
    storages: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes by storage name: together they cannot be more than the file has."""

    def add(self, value: Any) -> None:
        for name, leaf in self._iter_leaves(value, "", MAX_NESTING):
            if isinstance(leaf, Call):
                if (tensor := self._to_tensor(leaf)) is not None:
                    self.tensors[name] = tensor
            elif isinstance(leaf, (str, int, float)) and len(str(leaf)) <= MAX_VALUE_CHARS:
                self.values[name] = leaf
        stored = sum(self.storages.values())
        if stored > self.size:
            raise FlawError(f"{to_size(self.size)} of {to_size(stored)} present (truncated download?). Download it again.")
        if len(self.tensors) > self.limits.tensors:
            raise FlawError(f"names {len(self.tensors)} tensors, more than {self.limits.tensors}. Do not use it.")

    def _iter_leaves(self, value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth < 0 or len(name) > self.limits.name_chars:
            raise FlawError("its pickle describes more than any checkpoint holds (nested without end?). Do not use it.")
        items = _to_items(value)
        if items is None and isinstance(value, (list, tuple)):
            items = dict(enumerate(cast(list[Any], value)))
        if items is None:
            yield name, value
            return
        for key, item in items.items():
            yield from self._iter_leaves(item, f"{name}.{key}" if name else str(key), depth - 1)

    def _to_tensor(self, call: Call) -> TensorInfo | None:
        """The tensor that a call of torch's rebuild functions would make; None for other calls."""
        if not isinstance(call.function, Global) or not isinstance(call.arguments, tuple) or not call.arguments:
            return None
        arguments = cast(tuple[Any, ...], call.arguments)
        if call.function.name in _PARAMETERS and isinstance(arguments[0], Call):
            return self._to_tensor(arguments[0]) if arguments[0].function != call.function else None
        if call.function.name not in _TENSORS or len(arguments) < 4:
            return None
        storage, _, shape, _ = arguments[:4]
        if not isinstance(storage, Persistent) or not _is_shape(shape, self.limits.dims):
            raise FlawError("its pickle describes a tensor that torch would not write. Do not use it.")
        explicit = arguments[6] if call.function.name == "_rebuild_tensor_v3" and len(arguments) > 6 else None
        return TensorInfo(self._check_storage(storage.pid, shape, explicit), shape)

    def _check_storage(self, pid: Any, shape: tuple[int, ...], explicit: Any) -> str:
        """The dtype of a tensor; its storage is counted once."""
        if not (isinstance(pid, tuple) and len(cast(tuple[Any, ...], pid)) >= 5 and pid[0] == "storage"):
            raise FlawError("its pickle describes a storage that torch would not write. Do not use it.")
        _, kind, key, _, count = cast(tuple[Any, ...], pid)[:5]
        stored = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
        dtype = _DTYPES.get(explicit.name) if isinstance(explicit, Global) else stored
        if stored is None or dtype is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**60:
            raise FlawError("its pickle describes a storage that torch would not write. Do not use it.")
        self.storages[key] = count * DTYPE_BITS[stored] // 8
        if math.prod(shape) * DTYPE_BITS[dtype] // 8 > self.size:
            raise FlawError(f"a tensor of shape {shown(shape)} has more values than the file. Do not use it, or download it again.")
        return dtype


def _is_shape(shape: Any, dims: int) -> bool:
    if not isinstance(shape, tuple) or len(cast(tuple[Any, ...], shape)) > dims:
        return False
    return all(type(number) is int and 0 <= number < 2**48 for number in cast(tuple[Any, ...], shape))
