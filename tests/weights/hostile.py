"""Files of strangers, each made to hurt whoever reads it: one gallery for the tests and for the fuzzer's corpus."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.weights.writer import write_raw, write_safetensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SYSTEM: Any = vars(os)["system"]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return SYSTEM, (f"touch {self.marker}",)


def _zip_of(path: Path, content: bytes, member: str = "archive/data/0", compression: int = zipfile.ZIP_STORED, body_mb: int = 0) -> None:
    """A checkpoint archive around a pickle; `body_mb` of zeros as its tensor."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        with archive.open(member, "w", force_zip64=True) as out:
            for _ in range(body_mb):
                out.write(bytes(2**20))


def _tensors(**entries: Any) -> str:
    return json.dumps(entries)


def _many_empty_tensors(path: Path) -> None:
    entry = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    write_raw(path, "{" + ",".join(entry % number for number in range(300_000)) + "}")


def _truncated(path: Path) -> None:
    write_safetensors(path, {"a": (1000, 1000)})
    os.truncate(path, path.stat().st_size // 2)


def _truncated_zip(path: Path) -> None:
    _zip_of(path, pickle.dumps({}, protocol=2), body_mb=1)
    os.truncate(path, path.stat().st_size // 2)


def gallery(marker: Path) -> dict[str, Callable[[Path], object]]:
    """File name -> how it is made. What holds code would make `marker` if it ran."""
    evil = pickle.dumps({"state_dict": {"a": Touch(marker)}}, protocol=2)
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 4265380512\n"
    return {
        # 1 to 3: code
        "zip.ckpt": lambda path: _zip_of(path, evil),
        "plain.pt": lambda path: path.write_bytes(evil),
        "protocol5.bin": lambda path: path.write_bytes(pickle.dumps(Touch(marker), protocol=5)),
        "renamed.safetensors": lambda path: path.write_bytes(evil),
        "renamed.png": lambda path: path.write_bytes(evil),
        "global.pt": lambda path: path.write_bytes(b"\x80\x02cposix\nsystem\nX\x05\0\0\0touch\x85R."),
        # 8 to 11: not a file, or not all of it
        "truncated.safetensors": _truncated,
        "truncated.ckpt": _truncated_zip,
        "empty.safetensors": lambda path: path.write_bytes(b""),
        "three.safetensors": lambda path: path.write_bytes(b"\0\0\0"),
        "page.safetensors": lambda path: path.write_text("<!DOCTYPE html><html>please log in</html>"),
        "pointer.safetensors": lambda path: path.write_text(lfs),
        "answer.safetensors": lambda path: path.write_text('{"error": "Invalid username or password."}'),
        # 13, 15: bombs in archives and pickles
        "bomb.pt": lambda path: _zip_of(path, pickle.dumps({}, protocol=2), compression=zipfile.ZIP_DEFLATED, body_mb=64),
        "nested.pt": lambda path: path.write_bytes(b"\x80\x02" + b"]" * 2_000_000 + b"a" * 1_999_999 + b"."),
        "laughs.pt": lambda path: path.write_bytes(b"\x80\x02)" + b"2\x86" * 60 + b"." + bytes(20)),
        "marks.pt": lambda path: path.write_bytes(b"\x80\x02" + b"(" * 3_000_000 + b"."),
        "long.pt": lambda path: path.write_bytes(b"\x80\x02\x8b" + struct.pack("<I", 10_000_000) + b"\1" * 10_000_000 + b"."),
        # 16, 17: lengths that lie, headers that are endless
        "length63.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY), b"\0" * 8, 2**63 - 1),
        "length64.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY), b"\0" * 8, 2**64 - 1),
        "length100m.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY), b"\0" * 8, 100 * 2**20 + 1),
        "many.safetensors": _many_empty_tensors,
        # 18 to 20: layouts that lie
        "overlap.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY, b={**ENTRY, "data_offsets": [4, 12]}), b"\0" * 12),
        "hole.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY, b={**ENTRY, "data_offsets": [12, 20]}), b"\0" * 20),
        "trailing.safetensors": lambda path: write_raw(path, _tensors(a=ENTRY), b"\0" * 11),
        "double.safetensors": lambda path: write_raw(path, f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}', b"\0" * 8),
        "overflow.safetensors": lambda path: write_raw(path, _tensors(a={**ENTRY, "shape": [2**62, 2**62]}), b"\0" * 8),
        "mismatch.safetensors": lambda path: write_raw(path, _tensors(a={**ENTRY, "shape": [3]}), b"\0" * 8),
        "dtype.safetensors": lambda path: write_raw(path, _tensors(a={**ENTRY, "dtype": "F99"}), b"\0" * 8),
        "dims.safetensors": lambda path: write_raw(path, _tensors(a={**ENTRY, "shape": [1] * 100_000}), b"\0" * 8),
        "deep.safetensors": lambda path: write_raw(path, '{"a":' * 200_000),
        # 21: names and metadata
        "control.safetensors": lambda path: write_raw(path, _tensors(**{"a\x1b[31m\n": ENTRY}), b"\0" * 8),
        "endless.safetensors": lambda path: write_raw(path, _tensors(**{"a" * 100_000: ENTRY}), b"\0" * 8),
        "metadata.safetensors": lambda path: write_raw(path, json.dumps({"__metadata__": {"k": "x" * 20_000_000}})),
    }
