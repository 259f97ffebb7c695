"""The plan on disk: one Parquet file, a row per image, that any tool opens and a worker reads a shard at a time."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sdbatch.cell import Cell, WeightFile, recipe_from
from sdbatch.errors import FolderError
from sdbatch.plan.axis import Codes, Column
from sdbatch.plan.cells import cell_of
from sdbatch.plan.plan import Lookup, Plan, plan_id
from sdbatch.plan.tree import Tree, overlay
from sdbatch.results.arrow import integers, numpy_of, plain_values
from sdbatch.results.ids import IdArray, column_of_ids, ids_of_column, ids_of_text

VERSION = 2
READABLE = (1, 2)
"""Version 1 had another `plan_id`; all else is the same."""
ROW_GROUP_CELLS = 65_536
FIXED = ("image_id", "shard", "recipe", "group")
METADATA_KEY = b"sdbatch.plan"


def to_table(plan: Plan, start: int, stop: int, types: Mapping[str, pa.DataType | None]) -> pa.Table:
    """A slice of the plan as Arrow: ids, places, then a column per swept key."""
    cells = plan.slice(start, stop)
    arrays: dict[str, Any] = {
        "image_id": column_of_ids(cells.ids),
        "shard": integers(cells.shard).cast(pa.int32()),
        "recipe": integers(cells.recipe).cast(pa.int32()),
        "group": integers(cells.group).cast(pa.int32()),
    }
    for key, column in {**plan.columns, **plan.labels}.items():
        arrays[key] = _arrow(column.values, column.at(cells.points), types[key])
    return pa.table(arrays)


def _arrow(values: Sequence[Any], codes: Codes, kind: pa.DataType | None) -> pa.Array:
    """Values of one kind keep their type; mixed ones and lists are JSON text."""
    used, local = np.unique(codes, return_inverse=True)
    picked = [None if code < 0 else values[code] for code in used.tolist()]
    if kind is None:
        picked = [None if value is None else json.dumps(value, ensure_ascii=False) for value in picked]
    return plain_values(picked, kind or pa.string()).take(integers(local.reshape(-1)))


def column_type(column: Column) -> pa.DataType | None:
    """The Arrow type of a column, or None when only JSON text holds it."""
    types = {int} if isinstance(column.values, range) else {type(value) for value in column.values if value is not None}
    plain: dict[type, Any] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    return plain.get(types.pop()) if len(types) == 1 else None


def write_plan(plan: Plan, path: Path, beside: int = 0) -> None:
    """Write the plan; the name exists only when the file is whole. `beside`: images of other plans that its folder holds.

    Side effects: a temporary file beside it, renamed when synced.
    """
    types = {key: column_type(column) for key, column in {**plan.columns, **plan.labels}.items()}
    schema = to_table(plan, 0, min(1, len(plan)), types).schema
    schema = schema.with_metadata({METADATA_KEY: json.dumps(_head(plan, types, beside), ensure_ascii=False).encode()})
    temporary = path.with_name(f".tmp-{path.name}")
    with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(plan), ROW_GROUP_CELLS):
            writer.write_table(to_table(plan, start, min(start + ROW_GROUP_CELLS, len(plan)), types).cast(schema))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _head(plan: Plan, types: Mapping[str, pa.DataType | None], beside: int) -> dict[str, Any]:
    return {
        "version": VERSION,
        "name": plan.name,
        "plan_id": plan.plan_id,
        "cells": len(plan),
        "room": len(plan) + beside,
        "shards": plan.shards,
        "groups": plan.groups,
        "recipes": [asdict(recipe) for recipe in plan.recipes],
        "files": [[group, asked, asdict(file)] for (group, asked), file in plan.files.items()],
        "columns": {key: types[key] is None for key in plan.columns},
        "labels": list(plan.labels),
    }


class PlanFile:
    """A plan on disk, read a row group at a time. Raises FolderError when it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = pq.ParquetFile(path, page_checksum_verification=True)
            head = cast(dict[str, Any], json.loads((self.file.schema_arrow.metadata or {})[METADATA_KEY]))
        except FileNotFoundError:
            raise FolderError(f"{path}: there is no plan here. Give the folder of a sweep.") from None
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise FolderError(
                f"{path}: not a readable plan ({str(error).splitlines()[0]}). Run the sweep again to write it anew."
            ) from None
        if head["version"] not in READABLE:
            raise FolderError(f"{path}: plan version {head['version']}, this sdbatch reads {VERSION}. Run the sweep again.")
        self.path = path
        self.name: str = head["name"]
        self._plan_id: str | None = head["plan_id"] if head["version"] == VERSION else None
        self.cells: int = head["cells"]
        self.room: int = head.get("room", self.cells)
        """Images that the folder is to hold: these, and those of earlier plans."""
        self.shards: int = head["shards"]
        self.groups: list[Tree] = head["groups"]
        self.recipes = [recipe_from(item) for item in head["recipes"]]
        self.files = {(group, asked): WeightFile(**file) for group, asked, file in head["files"]}
        self.columns: dict[str, bool] = head["columns"]
        self.labels: list[str] = head["labels"]
        self._cached: tuple[int, pa.Table] | None = None
        self._bounds = self._shard_bounds()

    @property
    def plan_id(self) -> str:
        """16 hex digits: equal for the same set of images."""
        return self._plan_id or plan_id(ids for ids, _, _ in self.iter_keys())

    def _shard_bounds(self) -> list[tuple[int, int]]:
        """First and last shard of each row group, from the file's statistics."""
        position = self.file.schema_arrow.get_field_index("shard")
        metadata = self.file.metadata
        statistics = [metadata.row_group(index).column(position).statistics for index in range(metadata.num_row_groups)]
        return [(int(item.min), int(item.max)) for item in statistics]

    def iter_keys(self) -> Iterator[tuple[IdArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Image ids, shards (-1: made before this plan) and recipes as numbers, a row group at a time."""
        for index in range(self.file.num_row_groups):
            table = self.file.read_row_group(index, columns=["image_id", "shard", "recipe"])
            shards, recipes = (numpy_of(table[name], np.int32).astype(np.int64) for name in ("shard", "recipe"))
            yield ids_of_column(table["image_id"]), shards, recipes

    def shard_of(self, image_id: str) -> int | None:
        """The shard that makes an image; None when none does."""
        for ids, shards, _ in self.iter_keys():
            for shard in shards[(ids == ids_of_text(image_id.encode())).all(axis=1)].tolist():
                return shard if shard >= 0 else None
        return None

    def shard_recipes(self) -> npt.NDArray[np.int64]:
        """The recipe of each shard. Reads two columns, a row group at a time."""
        recipes = np.zeros(self.shards, dtype=np.int64)
        for index in range(self.file.num_row_groups):
            table = self.file.read_row_group(index, columns=["shard", "recipe"])
            shards, codes = (numpy_of(table[name], np.int32).astype(np.int64) for name in ("shard", "recipe"))
            recipes[shards[shards >= 0]] = codes[shards >= 0]
        return recipes

    def shard(self, number: int) -> list[Cell]:
        """The cells of a shard in their order."""
        rows: list[dict[str, Any]] = []
        for index, (low, high) in enumerate(self._bounds):
            if low <= number <= high:
                table = self._row_group(index)
                shards = numpy_of(table["shard"], np.int32)
                first, last = np.searchsorted(shards, [number, number + 1]).tolist()
                rows += table.slice(first, last - first).to_pylist()
        return [self._cell(row) for row in rows]

    def _row_group(self, index: int) -> pa.Table:
        if self._cached is None or self._cached[0] != index:
            self._cached = (index, self.file.read_row_group(index))
        return self._cached[1]

    def _cell(self, row: dict[str, Any]) -> Cell:
        picked = {key: json.loads(row[key]) if is_json else row[key] for key, is_json in self.columns.items() if row[key] is not None}
        config = overlay(self.groups[row["group"]], picked)
        axes = {key: row[key] for key in self.labels if row[key] is not None} | picked
        return cell_of(config, self.recipes[row["recipe"]], Lookup(self.files), row["image_id"], tuple(axes.items()))
