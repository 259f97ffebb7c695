"""Prompts from files and templates: one axis with a point per prompt."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sdbatch.errors import ConfigError
from sdbatch.plan.axis import UNSET, Axis

LINE_LIMIT = 100_000
"""Characters of one prompt: a longer line is a wrong file, not a prompt."""


def prompt_axis(conf: dict[str, Any], beside: Path | None = None) -> Axis | None:
    """The axis of `matrix.prompts`, or None when no source is set. Raises ConfigError, naming file and line.

    Files are those beside the job that names them, where there are such, else those from where the program is run.
    """
    texts = [str(text) for text in cast(list[Any], conf["text"])]
    points: list[dict[str, Any]] = [{"prompt": text} for text in texts]
    if conf["file"] is not None:
        points += read_prompts(_find(str(conf["file"]), beside))
        if not points:
            raise ConfigError(f"matrix.prompts.file={conf['file']}: no prompts in it.")
    if not points:
        return None
    if conf["template"] == "all":
        wildcards = None if conf["wildcards"] is None else str(_find(str(conf["wildcards"]), beside))
        points = expand_templates(points, wildcards)
    return Axis.points(points)


def _find(name: str, beside: Path | None) -> Path:
    path = Path(name).expanduser()
    return beside / path if beside is not None and (beside / path).exists() else path


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Points of a prompt file. Text: one prompt a line. CSV, JSONL, Parquet: columns are config keys, `prompt` first of all."""
    if not path.is_file():
        raise ConfigError(f"matrix.prompts.file={path}: no such file.")
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return _read_csv(path)
        case ".jsonl" | ".ndjson":
            return [_json_line(path, number, line) for number, line in _lines(path)]
        case ".parquet":
            import pyarrow.parquet as pq

            return [_without_null(row) for row in cast(list[dict[str, Any]], pq.read_table(path).to_pylist())]
        case _:
            return [{"prompt": line} for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not empty. Raises ConfigError for what is not UTF-8 text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"matrix.prompts.file={path}: line {line} is not UTF-8 text. Save the file as UTF-8.") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1)]
    for number, line in lines:
        if "\x00" in line or len(line) > LINE_LIMIT:
            raise ConfigError(f"matrix.prompts.file={path}: line {number} is not a prompt (a NUL, or over {LINE_LIMIT} characters).")
    return [(number, line) for number, line in lines if line]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    lines = [line for _, line in _lines(path)]
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    return [{key: _number(value) for key, value in row.items() if key and value not in (None, "")} for row in reader]


def _number(text: str) -> Any:
    """A CSV cell: JSON numbers and booleans are values, everything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"matrix.prompts.file={path}: line {number} is not JSON ({error}).") from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ConfigError(f'matrix.prompts.file={path}: line {number} must be an object such as {{"prompt": "a red fox"}}.')
    return _without_null(cast(dict[str, Any], value))


def _without_null(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def expand_templates(points: Sequence[dict[str, Any]], wildcards: str | None) -> list[dict[str, Any]]:
    """Every variant of each prompt template (`{a|b}`, `__wildcard__`), in the template's own order."""
    from dynamicprompts.generators import CombinatorialPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    folder = Path(wildcards).expanduser() if wildcards is not None else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"matrix.prompts.wildcards={wildcards}: no such folder.")
    manager = WildcardManager(folder)
    generator = CombinatorialPromptGenerator(manager)
    found: list[dict[str, Any]] = []
    for point in points:
        template = point.get("prompt", UNSET)
        if not isinstance(template, str):
            found.append(point)
            continue
        _refuse_unknown_wildcards(template, manager, folder)
        found += [{**point, "prompt": prompt} for prompt in dict.fromkeys(generator.generate(template))]
    return found


def _refuse_unknown_wildcards(template: str, manager: Any, folder: Path | None) -> None:
    """The library leaves an unknown wildcard in the text; a prompt with `__animal__` in it is never meant."""
    for name in re.findall(r"__([\w/*.-]+?)__", template):
        if not manager.get_values(name):
            where = f"in {folder}" if folder is not None else "because matrix.prompts.wildcards is not set"
            raise ConfigError(f"prompt {template!r}: there is no wildcard {name!r} {where}.")
