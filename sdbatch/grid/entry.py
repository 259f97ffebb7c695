"""What a grid needs to know of one image: its parameters by the names users type, and how it ended."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa

from sdbatch.results.row import axes_of
from sdbatch.results.schema import OK

Value = str | int | float | bool | None
"""A parameter as a grid compares it; lists are written as `a + b`."""

PARAMETERS = (
    "prompt",
    "negative_prompt",
    "family",
    "checkpoint",
    "vae",
    "sampler",
    "steps",
    "guidance_scale",
    "clip_skip",
    "width",
    "height",
    "seed",
)
"""Columns of a row that are parameters of the image, in the order in which footers and pages show them."""

TEXT_KEYS = frozenset({"prompt", "negative_prompt"})

SWEEP, IMAGE = "sweep", "image"
"""Two more parameters: the sweep's name, and the beginning of the image's id for when nothing else tells images apart."""

NEEDED_COLUMNS = ("image_id", "sweep", "axes", "loras", "status", "error", "image", *PARAMETERS)
"""What to read of the rows; the others are not looked at."""


_STACK = re.compile(r"\[[\w\s./,-]*\]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a comparison, made or not."""

    image_id: str
    values: Mapping[str, Value]
    """Parameter by key path, such as `lora.style_a.weight`; the declared axes and the columns of the row."""
    axes: tuple[str, ...] = ()
    """The keys that the sweep declared as its axes."""
    failed: bool = False
    error: str = ""
    """Why it failed; empty for a good image."""
    image: str = ""
    """Path of the image relative to its sweep folder."""


def read_entries(table: pa.Table) -> list[Entry]:
    """Rows as entries, in the rows' order. Columns that the table lacks are left out."""
    wanted = [name for name in NEEDED_COLUMNS if name in table.column_names]
    rows = cast(list[dict[str, Any]], table.select(wanted).to_pylist())
    return _without_folders([_to_entry(row) for row in rows])


def _without_folders(entries: list[Entry]) -> list[Entry]:
    """Files of an axis without the folder of this machine that all of them are in."""
    cut: dict[str, int] = {}
    for key in dict.fromkeys(key for entry in entries for key in entry.axes):
        values = {entry.values.get(key) for entry in entries} - {None}
        paths = [PurePosixPath(value) for value in values if isinstance(value, str) and value.startswith("/")]
        if key not in TEXT_KEYS and paths and len(paths) == len(values):
            cut[key] = len(posixpath.commonpath([path.parent for path in paths]).rstrip("/")) + 1
    return [replace(entry, values={key: _cut(value, cut.get(key, 0)) for key, value in entry.values.items()}) for entry in entries]


def _cut(value: Value, letters: int) -> Value:
    return value[letters:] if isinstance(value, str) else value


def _to_entry(row: Mapping[str, Any]) -> Entry:
    declared = {key: to_value(_unfold(value)) for key, value in axes_of(row).items()}
    values: dict[str, Value] = {name: to_value(row[name]) for name in PARAMETERS if row.get(name) is not None}
    values["lora"] = to_value([lora["name"] for lora in row.get("loras") or ()])
    for lora in row.get("loras") or ():
        values[f"lora.{lora['name']}.weight"] = to_value(lora["weight"])
        values[f"lora.{lora['name']}.text_encoder_weight"] = to_value(lora["text_encoder_weight"])
    values |= {SWEEP: str(row.get("sweep") or ""), IMAGE: str(row["image_id"])[:8], **declared}
    failed = row["status"] != OK
    reason = str(row.get("error") or row["status"]) if failed else ""
    return Entry(str(row["image_id"]), values, tuple(declared), failed, reason, str(row.get("image") or ""))


def _unfold(typed: Any) -> Any:
    """A stack as it was typed, `[style_a,style_b]`, as the list it is."""
    if not isinstance(typed, str) or not _STACK.fullmatch(typed):
        return typed
    return [name for part in typed[1:-1].split(",") if (name := part.strip())]


def to_value(raw: Any) -> Value:
    """A JSON value as a grid compares it: a list of names becomes `a + b`, an empty one `none`."""
    match raw:
        case None | bool() | int() | str():
            return raw
        case float():
            # float32 columns come back as 0.30000001192092896
            return float(f"{raw:.6g}")
        case list() | tuple():
            parts = [label(to_value(part)) for part in cast(list[Any], raw)]
            return " + ".join(parts) if parts else "none"
        case _:
            return json.dumps(raw, sort_keys=True, ensure_ascii=False, default=str)


def label(value: Value) -> str:
    """A value as people read it: `0.5`, `7`, `yes`; `-` for an image that has no such parameter."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case "":
            return "(empty)"
        case _:
            return str(value)
