"""Writes safetensors a tensor at a time: the header first, then each tensor as it is made. There whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdbatch.errors import WeightFileError
from sdbatch.results.disk import explained, is_stray, sync_folders, temporary_name

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Safetensors' names of the element types."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes written after each tensor."""


class Entry(NamedTuple):
    """A tensor to be written."""

    like: Tensor
    """Its shape and dtype."""
    make: Callable[[], Tensor]
    """Computes it, when its turn comes."""
    done: Callable[[], None]
    """Called when it is written."""


@contextmanager
def committed(final: Path) -> Generator[Path]:
    """A temporary path to write a file or folder at; it gets its own name at the end, or leaves nothing on an error.

    Raises:
        WeightFileError: something of that name is there, before or after the work.
    """
    if final.exists():
        raise WeightFileError(f"out={final}: is there already, and is never overwritten. Move it away or choose another name.")
    with explained("cannot write", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.iterdir():
            if left.name.endswith(f"-{final.name}") and is_stray(left.name):
                _remove(left)
    temporary = final.with_name(temporary_name(final.name))
    try:
        yield temporary
        with explained("cannot write", final):
            _publish(temporary, final)
            sync_folders([final.parent])
    except BaseException:
        _remove(temporary)
        raise


def _publish(temporary: Path, final: Path) -> None:
    if temporary.is_file():
        try:
            os.link(temporary, final)  # fails where the name is taken, as a rename would not
        except FileExistsError:
            raise WeightFileError(f"out={final}: another program has written this name meanwhile. Choose another one.") from None
        except OSError:
            temporary.rename(final)
        else:
            temporary.unlink()
    else:
        temporary.rename(final)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_safetensors(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str], on_bytes: OnBytes) -> None:
    """Write a file and flush it to the disk."""
    # The widest numbers first, so that each tensor starts at a multiple of its numbers' size.
    order = sorted(entries, key=lambda name: -entries[name].like.element_size())
    with explained("cannot write", path), path.open("xb", buffering=0) as file:
        file.write(to_header({name: entries[name].like for name in order}, metadata))
        # One tensor is written while the next is made.
        with ThreadPoolExecutor(max_workers=1) as pool:
            writing: Future[None] | None = None
            for name in order:
                data = _to_bytes(name, entries[name])
                if writing is not None:
                    writing.result()
                writing = pool.submit(_write, file.fileno(), data)
                entries[name].done()
                on_bytes(entries[name].like.nbytes)
            if writing is not None:
                writing.result()
        os.fsync(file.fileno())


def to_header(likes: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file with these tensors in this order."""
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, like in likes.items():
        described[name] = {"dtype": _NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [reached, reached + like.nbytes]}
        reached += like.nbytes
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _to_bytes(name: str, entry: Entry) -> memoryview:
    tensor = entry.make()
    assert (tensor.shape, tensor.dtype) == (entry.like.shape, entry.like.dtype), name
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def total_bytes(files: Iterable[Mapping[str, Entry]]) -> int:
    """The bytes of all tensors."""
    return sum(entry.like.nbytes for entries in files for entry in entries.values())
