"""What a configuration says of a file beside its name: the SHA-256 it must have, and of a preset where to get it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sdbatch.cell import SINGLE_PARTS, STACKS, WeightFile
from sdbatch.plan.tree import Tree
from sdbatch.weights.catalog import Catalog

SHORTEST_PIN = 10
"""Digits: AutoV2."""


def file_nodes(plain: Tree) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(key, group, node) of every option of a configuration that is a weight file."""
    for group in ("checkpoint", *SINGLE_PARTS):
        yield group, group, cast(Tree, plain[group])
    for group in STACKS:
        for name, node in cast(dict[str, Tree], plain.get(group) or {}).items():
            yield f"{group}.{name}", group, node


def pin_faults(groups: Sequence[Tree], files: Mapping[tuple[str, str], WeightFile]) -> Iterator[tuple[str, str]]:
    """(key, message) of every file that is not the one its `sha256` asks for."""
    for plain in groups:
        for key, group, node in file_nodes(plain):
            pin = str(node.get("sha256") or "").lower()
            if not pin:
                continue
            if not SHORTEST_PIN <= len(pin) <= 64 or set(pin) - set("0123456789abcdef"):
                yield f"{key}.sha256", f"{pin} is no SHA-256; give its 64 hex digits, or the first {SHORTEST_PIN} (AutoV2) or more."
            elif (file := files.get((group, node["file"]))) is not None and not file.sha256.startswith(pin):
                yield (
                    f"{key}.sha256",
                    f"{file.name} has {file.sha256[: max(len(pin), 12)]}, not {pin}: it is another version, or it was changed or damaged. "
                    "Get the right file, or change the pin.",
                )


def find_preset(groups: Sequence[Tree], group: str, asked: str) -> Mapping[str, Any] | None:
    """The preset that stands for a file of that name and has found none."""
    for plain in groups:
        for _, of_group, node in file_nodes(plain):
            preset = cast("Mapping[str, Any] | None", node.get("preset"))
            if of_group == group and preset is not None and asked == preset["name"]:
                return preset
    return None


def tell_absent(group: str, preset: Mapping[str, Any], catalog: Catalog) -> str:
    """What to put where, when none of a preset's files is there."""
    known = ", ".join([*preset["known"][:3], *(["..."] if len(preset["known"]) > 3 else [])])
    folder = shown_folder(catalog.target(group))
    text = f"{preset['name']} is not in the models folders (it is known as {known}). Put the file into {folder}"
    text += f", from {preset['source']}" if preset["source"] else ""
    return text + (f", or run `sdbatch pull {group}={preset['name']}`." if preset["repo"] else ".")


def shown_folder(folder: Path) -> str:
    """A folder as people type it: relative to where they are, if it is there."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
