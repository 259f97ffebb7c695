"""`sdbatch inspect FILE...`: what weight files are, from their headers alone.

Of a PNG with A1111's infotext (A1111, ComfyUI with a saver of it, Civitai, sdbatch): the command that makes it here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbatch.errors import FolderError, SdbatchError
from sdbatch.verbs.records import FORMS, write_records
from sdbatch.verbs.words import Option, read_names
from sdbatch.weights.header import shown

if TYPE_CHECKING:
    from sdbatch.config.infotext import Command

OPTIONS = {**FORMS, "hash": Option("true", "SHA-256, AutoV2, AutoV3 and A1111's short hash, which read the whole file")}
HIDDEN = ("blocks", "metadata", "path", "name", "size")


def main(arguments: Sequence[str]) -> int:
    """Inspect. Returns 0, or 1 when a file cannot be read."""
    files, words = read_names("inspect", arguments, ("FILE...",), OPTIONS)
    from sdbatch.weights.hashes import Hasher
    from sdbatch.weights.index import Index
    from sdbatch.weights.inspection import inspect_file

    index, hasher = Index(), Hasher() if words["hash"] == "true" else None
    records: list[dict[str, Any]] = []
    code = 0
    for name in files:
        try:
            if is_png(Path(name)):
                sys.stdout.write(f"{read_command(Path(name))}\n")
            else:
                records.append(inspect_file(Path(name), index, hasher))
        except SdbatchError as error:
            sys.stderr.write(f"{error}\n")
            code = 1
    if records:
        write_records(records, words, lambda found: "".join(to_text(record) for record in found))
    return code


def is_png(path: Path) -> bool:
    """Whether it is a picture of the kind that carries its settings."""
    return path.suffix.lower() == ".png" and path.is_file()


def read_command(path: Path) -> Command:
    """What to type for a picture like this. Raises FolderError for one that does not say how it was made."""
    from sdbatch.config.infotext import command_of
    from sdbatch.results.infotext import parse
    from sdbatch.results.png import read_texts

    texts = read_texts(path)
    if "parameters" not in texts:
        what = "ComfyUI's graph, which is not read" if "workflow" in texts or "prompt" in texts else "nothing of how it was made"
        raise FolderError(f"{path}: holds {what}. Pictures with A1111's infotext (`parameters`) are understood.")
    return command_of(parse(texts["parameters"]))


def to_text(record: dict[str, Any]) -> str:
    """A record as lines; what is unknown is left out."""
    facts = {key: value for key, value in record.items() if key not in HIDDEN and value not in (None, [], {}, "", False)}
    width = max(len(key) for key in facts)
    lines = [f"  {key.ljust(width)}  {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in facts.items()]
    return "\n".join([shown(record["path"]), *lines, *_block_lines(record["blocks"])]) + "\n"


def _block_lines(blocks: Sequence[dict[str, Any]]) -> list[str]:
    """Rank and alpha of an adapter's blocks: `down_1: 24 modules, rank 8-16, alpha 4`."""
    lines: list[str] = []
    for block in blocks:
        words = [f"{block['modules']} modules"]
        for what in ("rank", "alpha"):
            low, high = block[f"{what}_min"], block[f"{what}_max"]
            words += [f"{what} {_span(low, high)}"] if high is not None else []
        lines.append(f"    {block['block']}: {', '.join(words)}")
    return lines


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
