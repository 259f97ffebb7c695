"""What makes an image the image it is: a 128-bit id of every value that decides it, weight files by content.

The id is the sum, lane by lane modulo 2**64, of a digest of each `path=value` that is not neutral. A sum has no order, so
a million cells are named by adding whole columns; a value at its neutral default adds nothing, so an option that a later
version brings does not rename old images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sdbatch.cell import SINGLE_PARTS, STACKS, WeightFile
from sdbatch.families.enlargers import ENLARGERS
from sdbatch.plan.tree import Tree, expand, get

Lanes = npt.NDArray[np.uint64]
"""[..., 2]: the two 64-bit halves of an id."""

_NOTHING = bytes(16)

FILE_LEAVES = {
    "family.config": "config",
    "checkpoint.file": "checkpoint",
    "checkpoint.merge.b": "checkpoint",
    "checkpoint.merge.c": "checkpoint",
    "controlnet.*.image": "image",
    "task.image": "image",
    "task.mask": "image",
    "task.upscaler": "upscaler",
    "ip_adapter.*.image": "image",
    **{f"{group}.file": group for group in SINGLE_PARTS},
    **{f"{group}.*.file": group for group in STACKS},
}
"""Keys that name a file -> the group it is looked up in (`file_group`); the id holds its SHA-256."""

NAMED_STACKS = ("embedding",)
"""Stacks whose item names decide the image: the name is the word that the prompt calls."""


def canonical(value: Any) -> str:
    """JSON with one spelling per value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def digest(path: str, value: Any) -> bytes:
    """The two lanes of one value, 8 bytes each."""
    return hashlib.blake2b(f"{path}={canonical(value)}".encode(), digest_size=16).digest()


def column_lanes(path: str, values: Sequence[Any], neutral: Any) -> Lanes:
    """[values, 2]: the lanes of each value; zero where it is neutral."""
    data = bytearray()  # of millions of values no list is made
    for value in values:
        data += _NOTHING if _same(value, neutral) else digest(path, value)
    return np.frombuffer(data, "<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def leaves(config: Tree, defaults: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key path, canonical path, pattern) of every value of a configuration that decides the image."""
    return [(key, path, pattern) for pattern in defaults for key, path in expand(config, pattern)]


def config_lanes(config: Tree, defaults: Mapping[str, Any], file_hash: Mapping[tuple[str, str], str], varying: set[str]) -> Lanes:
    """[2]: the summed lanes of all values of a configuration, those of the varying keys left out."""
    total = np.zeros(2, dtype=np.uint64)
    for key, path, pattern in leaves(config, defaults):
        if key not in varying:
            total += column_lanes(path, [by_content(pattern, get(config, key), file_hash)], defaults[pattern])[0]
    for stack in NAMED_STACKS:
        for place, name in enumerate(get(config, stack) or {}):
            total += column_lanes(f"{stack}.{place}.name", [name], None)[0]
    return total


def file_group(pattern: str, value: Any) -> str | None:
    """The group in which the file is looked up that a value of a key names; None when it names none."""
    if value is None or (pattern == "task.upscaler" and value in ENLARGERS):
        return None
    return FILE_LEAVES.get(pattern)


def by_content(pattern: str, value: Any, file_hash: Mapping[tuple[str, str], str]) -> Any:
    """A file's SHA-256 in place of its name; other values as they are."""
    group = file_group(pattern, value)
    return value if group is None else file_hash[group, value]


def hexadecimal(lanes: Lanes) -> npt.NDArray[np.bytes_]:
    """32 hex digits for each row of lanes, as bytes."""
    return np.frombuffer(np.ascontiguousarray(lanes, dtype="<u8").tobytes().hex().encode(), dtype="S32")


def image_id(config: Tree, defaults: Mapping[str, Any], file_hash: Mapping[tuple[str, str], str]) -> str:
    """The id of one configuration."""
    return hexadecimal(config_lanes(config, defaults, file_hash, set())[None, :])[0].decode()


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral


class Finder(Protocol):
    """Finds files by name (`sdbatch.plan.files.FileBook`)."""

    def file(self, group: str, asked: str) -> WeightFile:
        """The file of a group: weights, an input `image` or a `config` folder."""
        ...


def file_digests(config: Tree, book: Finder) -> dict[tuple[str, str], str]:
    """(group, name) -> SHA-256 of every file that a configuration names. Raises WeightFileError."""
    values = [(pattern, get(config, key)) for pattern in FILE_LEAVES for key, _ in expand(config, pattern)]
    named = [(group, value) for pattern, value in values if (group := file_group(pattern, value)) is not None]
    return {(group, asked): book.file(group, asked).sha256 for group, asked in named}
