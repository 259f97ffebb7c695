"""Writes safetensors tensor by tensor: the header first, then each where it belongs when it is made. There whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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

MOST_AT_ONCE = 4
"""Tensors in the making: more would wait for the disk and take memory."""

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
        FolderError: the file system refuses, such as a full disk.
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
        with explained("cannot write", final):
            yield temporary
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


def write_safetensors(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str], on_bytes: OnBytes, settle: Callable[[str], str] = str
) -> None:
    """Write a file and flush it to the disk. At the end, `settle` puts what was not known before into each text, as long as it was."""
    # The widest numbers first, so that each tensor starts at a multiple of its numbers' size.
    order = sorted(entries, key=lambda name: -entries[name].like.element_size())
    likes = {name: entries[name].like for name in order}
    header = to_header(likes, metadata)
    starts = itertools.accumulate((entries[name].like.nbytes for name in order), initial=len(header))
    with path.open("xb", buffering=0) as file:
        with _one_thread_each(), ThreadPoolExecutor(_count_threads()) as pool:
            making = [pool.submit(_make, file.fileno(), name, entries[name], start) for name, start in zip(order, starts, strict=False)]
            try:
                for name, made in zip(order, making, strict=True):
                    made.result()
                    on_bytes(entries[name].like.nbytes)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        settled = to_header(likes, {key: settle(text) for key, text in metadata.items()})
        assert len(settled) == len(header)
        _write(file.fileno(), memoryview(settled), 0)
        os.fsync(file.fileno())


def _count_threads() -> int:
    """Tensors that are made and written at the same time: at least two, so that one is made while another is written."""
    return min(max(len(os.sched_getaffinity(0)), 2), MOST_AT_ONCE)


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Torch without threads of its own for a while: tensors are made side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(descriptor: int, name: str, entry: Entry, start: int) -> None:
    tensor = entry.make()
    assert (tensor.shape, tensor.dtype) == (entry.like.shape, entry.like.dtype), name
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    _write(descriptor, memoryview(flat), start)
    # The disk begins at once, not at the end when nothing else is to be done; what it has written leaves the memory to the sources.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    entry.done()


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


def _write(descriptor: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def total_bytes(files: Iterable[Mapping[str, Entry]]) -> int:
    """The bytes of all tensors."""
    return sum(entry.like.nbytes for entries in files for entry in entries.values())
