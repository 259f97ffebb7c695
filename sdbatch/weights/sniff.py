"""What a file really is, by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from sdbatch.weights.header import FlawError, to_size

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
"""Names under which a pickle is expected."""

_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "is a GGUF file, which sdbatch does not read. Use a .safetensors version."),
    (b"\x89PNG", "is a picture (PNG), not a weight file. Check what was downloaded."),
    (b"\xff\xd8\xff", "is a picture (JPEG), not a weight file. Check what was downloaded."),
    (b"\x89HDF", "is an HDF5 (Keras) file, which sdbatch does not read. Use a .safetensors version."),
    (b"\x1f\x8b", "is a gzip archive. Unpack it first."),
    (b"7z\xbc\xaf", "is a 7z archive. Unpack it first."),
    (b"Rar!", "is a RAR archive. Unpack it first."),
    (b"%PDF", "is a PDF document, not a weight file. Check what was downloaded."),
)
"""Beginnings of files that people take for weight files, and what to say."""


def sniff(path: Path, head: bytes, size: int) -> Literal["safetensors", "pickle"]:
    """Which reader a file needs, from its first 512 bytes.

    Raises: FlawError for everything that is not a weight file, and for a pickle under another name.
    """
    if size == 0:
        raise FlawError("is empty (0 bytes). Download it again.")
    if (text := _describe_text(head)) is not None:
        raise FlawError(text)
    for magic, message in _STRANGERS:
        if head.startswith(magic):
            raise FlawError(message)
    if _is_pickle(head):
        _check_pickle_name(path)
        return "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    if size < 16:
        raise FlawError(f"has only {size} bytes, no weight file is that short. Download it again.")
    raise FlawError(f"is neither safetensors nor a torch checkpoint (starts with {head[:8].hex(' ')}). {_ADVICE}")


_ADVICE = "Download it again, or use a .safetensors version."


def _describe_text(head: bytes) -> str | None:
    """The sentence for a text file, None when it is none."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        digest = re.search(rb"oid sha256:([0-9a-f]{64})", head)
        size = re.search(rb"\nsize (\d{1,15})", head)
        what = f" for sha256:{digest[1].decode()}" if digest else ""
        length = f" ({to_size(int(size[1]))})" if size else ""
        return f"is a Git-LFS pointer{what}{length}, not the file itself. Run `git lfs pull` in its repository."
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<script")):
        return "is an HTML page, not a weight file (login needed?). Download it again while logged in."
    if start.startswith(b'{"') or start.startswith(b"{\n"):
        return "is a JSON text (an error message of the server?), not a weight file. Download it again."
    if head.isascii() and head.translate(None, b"\t\n\r").decode().isprintable():
        return "is a text, not a weight file. Check what was downloaded."
    return None


def _is_pickle(head: bytes) -> bool:
    # A torch checkpoint is a zip of a pickle; older ones are pickles, which since protocol 2 begin with 0x80 and its number.
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return True
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[8:9] != b"{"


def _check_pickle_name(path: Path) -> None:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return
    if path.suffix.lower() in {".safetensors", ".sft"}:
        raise FlawError("is a pickle, not safetensors; a pickle can hold code, and this one hides it. Get a real .safetensors.")
    raise FlawError("is a pickle under a name that does not say so. If you trust it, rename it to end in .pt.")
