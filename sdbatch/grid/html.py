"""A comparison as one static page: choose its axes in the browser, click an image for its parameters."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from sdbatch.grid.axes import Axes, collect_values
from sdbatch.grid.draw import Locate, count_gone, largest_size, place_entries, summarize
from sdbatch.grid.entry import PARAMETERS, Entry, Value, label

MOST_ENTRIES = 20_000
"""Images that one page holds; about 300 bytes each."""


def render_page(entries: Sequence[Entry], axes: Axes, locate: Locate, page: Path, title: str) -> str:
    """The whole page as text, to be saved at `page`; images are referred to relative to its folder.

    Nothing is loaded from elsewhere and nothing but the page's own script runs: its content security policy names the
    hashes of style and script, and every text of the sweep is escaped or travels as JSON.
    """
    kept = entries[:MOST_ENTRIES]
    style, script = _read("page.css"), _read("page.js")
    placed = place_entries(entries, axes)
    summary = summarize(placed, len(entries), axes, count_gone(placed, locate))
    if len(kept) < len(entries):
        summary += f"; the page holds the first {len(kept)}"
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src '{_csp_hash(style)}'; script-src '{_csp_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_read("page.html")).substitute(
        policy=policy,
        title=html.escape(title or "grid"),
        summary=html.escape(summary),
        style=style,
        data=_island(_collect(kept, axes, locate, page)),
        script=script,
    )


def _collect(entries: Sequence[Entry], axes: Axes, locate: Locate, page: Path) -> dict[str, object]:
    """What the script draws from: every value once, the images as indexes into them."""
    known = collect_values(entries)
    names = sorted(known, key=lambda name: (PARAMETERS.index(name) if name in PARAMETERS else len(PARAMETERS), name))
    places: dict[str, dict[Value, int]] = {name: {value: number for number, value in enumerate(known[name])} for name in names}
    width, height = largest_size(entries)
    return {
        "keys": [{"name": name, "values": [label(value) for value in known[name]]} for name in names],
        "axes": [axis.key for axis in axes.used],
        "held": {axis.key: places[axis.key][axis.values[0]] for axis in axes.held},
        "followers": list(axes.followers),
        "choice": {place: axis.key for place, axis in (("x", axes.x), ("y", axes.y), ("z", axes.z)) if axis},
        "width": width,
        "ratio": height / width,
        "cells": [_cell(entry, [places[name][entry.values.get(name)] for name in names], locate(entry), page) for entry in entries],
    }


def _cell(entry: Entry, values: list[int], path: Path | None, page: Path) -> dict[str, object]:
    return {
        "id": entry.image_id,
        "image": None if path is None else quote(Path(os.path.relpath(path, page.parent)).as_posix()),
        "error": entry.error or None,
        "command": None if path is None else f"sdbatch replay {shlex.quote(_as_typed(path))}",
        "values": values,
    }


def _as_typed(path: Path) -> str:
    """Relative where that is shorter: the way from here, where `sdbatch` was called."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _island(content: object) -> str:
    """JSON that cannot end its script element nor open a comment in it."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (files("sdbatch.grid") / name).read_text(encoding="utf-8").strip()
