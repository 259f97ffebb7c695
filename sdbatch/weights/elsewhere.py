"""A name that its group does not have, but another has: what that file is, and how it is asked for."""

from __future__ import annotations

from pathlib import Path

from sdbatch.cell import STACKS
from sdbatch.errors import WeightFileError
from sdbatch.weights.catalog import Catalog, to_option_name
from sdbatch.weights.fit import describe
from sdbatch.weights.index import Index
from sdbatch.weights.kinds import GROUPS

_NOT_READ: dict[str, str] = {
    ".gguf": "is a GGUF file, which sdbatch does not read; use its .safetensors version",
    ".onnx": "is an ONNX file, which sdbatch does not read; use its .safetensors version",
    **dict.fromkeys((".part", ".crdownload", ".aria2", ".incomplete"), "is a download that is not complete; finish it"),
    **dict.fromkeys((".zip", ".7z", ".rar"), "is an archive; unpack it first"),
}
"""Endings of files that lie among weight files and are none that is read."""


def tell_elsewhere(catalog: Catalog, group: str, asked: str) -> str:
    """One sentence on the file of that name; empty when there is none."""
    for folder in catalog.folders(group):
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _NOT_READ):
            if asked in (path.name, path.stem, to_option_name(path.stem)):
                return f"{path.name} {_NOT_READ[path.suffix.lower()]}."
    others = (other for other, kind in GROUPS.items() if kind is not GROUPS[group])
    return next((_tell(catalog, group, other, name, path) for other in others for name, path in _named(catalog, other, asked)), "")


def _named(catalog: Catalog, group: str, asked: str) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in catalog.options(group).items() if asked in (name, path.name, path.stem)]


def _tell(catalog: Catalog, group: str, other: str, name: str, path: Path) -> str:
    try:
        file = Index().identify(path)
    except WeightFileError as error:
        return str(error)
    what = f"{path.name} is {describe(file)}"
    if file.group == group:
        return f"{what}, but it lies in {path.parent}. Put it into {catalog.target(group)}."
    if file.group != other:
        return f"{what}, in {path.parent}."
    return f"{what}: use " + (f"'{other}=[{name}]'." if other in STACKS else f"{other}={name}.")
