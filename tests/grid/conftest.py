"""Rows of sweeps that were never run, and images of one plain colour each."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from PIL import Image

from sdbatch.grid.draw import Loader
from sdbatch.grid.entry import Entry
from sdbatch.results.row import Row, canonical_json
from sdbatch.results.schema import FAILED, OK, SCHEMA

Colour = tuple[int, int, int]


def make_row(axes: Mapping[str, Any], **columns: Any) -> Row:
    """The row of a good image; an axis that is a column sets it."""
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {
        "image_id": f"{abs(hash(canonical_json(dict(axes)))):032x}"[:32],
        "axes": [{"key": key, "value": canonical_json(value)} for key, value in axes.items()],
        "status": OK,
        "prompt": "a fox",
        "negative_prompt": "",
        "seed": 0,
        "sampler": "euler",
        "steps": 8,
        "guidance_scale": 4.5,
        "clip_skip": 1,
        "width": 64,
        "height": 64,
        "family": "tiny",
        "checkpoint": "tiny",
        "loras": [],
    }
    row |= {key: value for key, value in axes.items() if key in row}
    row |= columns
    row["image"] = None if row["status"] == FAILED else f"images/{row['image_id']}.png"
    return row


def make_table(*rows: Row) -> pa.Table:
    """Rows as they come from disk."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def cross(**axes: list[Any]) -> list[Row]:
    """One row per combination, the last axis fastest. `lora_a` stands for `lora.a.weight`."""
    names = [name.replace("lora_a", "lora.a.weight") for name in axes]
    rows: list[Row] = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(names, values, strict=True))
        weight = chosen.get("lora.a.weight")
        loras = [] if weight is None else [{"name": "a", "sha256": "a" * 64, "weight": weight, "text_encoder_weight": weight}]
        rows.append(make_row(chosen, loras=loras))
    return rows


def painter(colours: Mapping[Any, Colour], *keys: str, size: tuple[int, int] = (64, 64)) -> Loader:
    """A loader that gives the image of these parameters that colour."""

    def load(entry: Entry) -> Image.Image | None:
        colour = colours.get(tuple(entry.values.get(key) for key in keys))
        return Image.new("RGB", size, colour) if colour else None

    return load
