"""Fetch one file of a repository into the models folder: resumable, checked, and there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from sdbatch.errors import FolderError, WeightFileError
from sdbatch.hub.address import Address
from sdbatch.hub.client import UnreachableError, explained, is_offline
from sdbatch.weights.header import to_size
from sdbatch.weights.reader import read_header

_CHUNK_BYTES = 8 * 2**20


def fetch_file(address: Address, target: Path, sha256: str | None = None) -> Path:
    """Fetch `address.file` to `target`, going on where an earlier try stopped.

    `sha256`: its first digits or all of them; the Hub's own is checked too.

    Raises: WeightFileError when it cannot be had or is not the file that was asked for; FolderError when it does not fit.
    Side effects: writes a hidden part file beside the target until it is complete.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    assert address.file is not None
    if is_offline():
        raise UnreachableError(f"{address.repo}: the Hub may not be asked (HF_HUB_OFFLINE is set).")
    url = hf_hub_url(address.repo_id, address.file, revision=address.revision, repo_type=address.repo_type)
    with explained(address):
        about = get_hf_file_metadata(url)
    etag, size = about.etag or "unknown", about.size
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".pull-{etag[:16]}.{target.name}")
    with part.open("ab") as file:
        _lock(file, target)
        _check_space(target, size, file.tell())
        with explained(address):
            _transfer(url, file, size)
        file.flush()
        os.fsync(file.fileno())
        _check(part, address, size, [want for want in (sha256, etag if len(etag) == 64 else None) if want])
        part.rename(target)
    _sync_folder(target.parent)
    return target


def _transfer(url: str, file: BinaryIO, size: int | None) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if size is not None and file.tell() >= size:
        return
    try:
        http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
    except OSError as fault:
        # The library's word for a transfer that ended early; what came is kept, and `_check` says how much it is.
        if size is None or "Consistency check failed" not in str(fault):
            raise


def _check(part: Path, address: Address, size: int | None, wanted: list[str]) -> None:
    """Refuse what is not the file that was asked for; a wrong part is removed, for it can never become right."""
    present = part.stat().st_size
    if size is not None and present < size:
        raise WeightFileError(f"{address.file}: {to_size(present)} of {to_size(size)} came. Run the same command again to go on.")
    try:
        found = _sha256(part)
        for digits in wanted:
            if not found.startswith(digits.lower()):
                raise WeightFileError(
                    f"{address.file}: has the SHA-256 {found}, expected {digits}. It was changed at {address.page}, or damaged on its way; "
                    "nothing was kept."
                )
        read_header(part)
    except WeightFileError:
        part.unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _lock(file: BinaryIO, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise FolderError(f"{target}: another process is fetching it. Wait until it is done.") from None


def _check_space(target: Path, size: int | None, present: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if size is not None and size - present > free:
        raise FolderError(f"{target.parent}: {to_size(size - present)} are needed for {target.name}, {to_size(free)} are free. Make room.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
