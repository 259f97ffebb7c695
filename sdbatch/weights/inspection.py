"""All that can be said of one weight file, as plain data: what `sdbatch inspect` shows as a table, JSON or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdbatch.weights.fit import describe
from sdbatch.weights.hashes import Hasher
from sdbatch.weights.identity import Identity
from sdbatch.weights.index import Index
from sdbatch.weights.record import to_record


def inspect_file(path: Path, index: Index | None = None, hasher: Hasher | None = None) -> dict[str, Any]:
    """The record of a file, with one line on what it is; with its hashes when a hasher is given (that reads the file).

    Raises: WeightFileError.
    """
    identity = (index or Index()).identify(path)
    record = summarize(identity)
    return {**record, **to_hash_record(identity, hasher)} if hasher else record


def summarize(identity: Identity) -> dict[str, Any]:
    """The record of a file and one line on what it is."""
    return {**to_record(identity), "summary": describe(identity)}


def to_hash_record(identity: Identity, hasher: Hasher) -> dict[str, str | None]:
    """The hashes by which model pages and other programs know a file; None where a hash is not defined for it."""
    path = identity.path
    is_file = identity.format != "folder"
    return {
        "sha256": hasher.sha256(path),
        "autov1": hasher.legacy_short(path) if is_file else None,
        "autov2": hasher.autov2_short(path),
        "autov3": hasher.autov3(path)[:12] if identity.format == "safetensors" else None,
        "a1111_short": hasher.lora_short(path, dict(identity.metadata))
        if identity.kind == "lora" and is_file
        else hasher.autov2_short(path),
    }
