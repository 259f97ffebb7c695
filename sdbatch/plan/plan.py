"""The plan: every cell of a sweep in the order that loads least, named by content, cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sdbatch.cell import Cell, Recipe, WeightFile
from sdbatch.plan.axis import Codes
from sdbatch.plan.cells import cell_of
from sdbatch.plan.draft import Column
from sdbatch.plan.tree import Tree, overlay
from sdbatch.results.ids import Ids, ids_of_text

SMALL_PLAN = 100_000
HUGE_PLAN = 10_000_000
SHARD_CELLS = 32
SHARD_CELLS_LARGE = 256
SHARD_CELLS_HUGE = 2560
"""Cells of a shard: many shards share out evenly, few cost little to claim. A function of the plan's size alone."""


@dataclass(frozen=True)
class Plan:
    """A table with one row per image, as columns."""

    name: str
    groups: list[Tree]
    """Configurations; a cell is one of them with its columns overlaid."""
    recipes: list[Recipe]
    files: dict[tuple[str, str], WeightFile]
    """(group, name as typed) -> file."""
    image_ids: list[str]
    group: Codes
    recipe: Codes
    shard: Codes
    """Sorted; -1 for cells that were made before this plan and need no work."""
    columns: dict[str, Column]
    """Swept keys."""
    labels: dict[str, Column]
    """Swept group choices, as typed."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return int(self.shard[-1]) + 1 if len(self) else 0

    @property
    def plan_id(self) -> str:
        """16 hex digits: equal for the same set of images."""
        return plan_id(self.image_ids)

    def adopt(self, done: Ids) -> Plan:
        """The same plan without work for cells that are done: these come first, the rest is cut into shards anew."""
        made = done.contains(ids_of_text("".join(self.image_ids).encode()))
        order = np.argsort(~made, kind="stable")
        shard = np.full(len(self), -1, dtype=np.int64)
        count = int(made.sum())
        shard[count:] = cut_shards(self.recipe[order][count:])
        return replace(
            self,
            image_ids=[self.image_ids[index] for index in order.tolist()],
            group=self.group[order],
            recipe=self.recipe[order],
            shard=shard,
            columns=reorder(self.columns, order),
            labels=reorder(self.labels, order),
        )

    def axes(self, cell: int) -> tuple[tuple[str, Any], ...]:
        """The axes of the sweep and this cell's values."""
        both = {**self.labels, **self.columns}
        return tuple((key, column.values[column.codes[cell]]) for key, column in both.items() if column.codes[cell] >= 0)

    def config(self, cell: int) -> Tree:
        """The configuration of a cell."""
        picked = {key: column.values[column.codes[cell]] for key, column in self.columns.items() if column.codes[cell] >= 0}
        return overlay(self.groups[int(self.group[cell])], picked)

    def cell(self, index: int) -> Cell:
        """A cell, complete."""
        recipe = self.recipes[int(self.recipe[index])]
        return cell_of(self.config(index), recipe, Lookup(self.files), self.image_ids[index], self.axes(index))

    def cells(self, shard: int) -> list[Cell]:
        """The cells of a shard in their order."""
        first, last = np.searchsorted(self.shard, [shard, shard + 1]).tolist()
        return [self.cell(index) for index in range(first, last)]


@dataclass(frozen=True)
class Lookup:
    """A plan's own record of its files, in place of the models folders."""

    files: Mapping[tuple[str, str], WeightFile]

    def weight(self, group: str, asked: str) -> WeightFile:
        """A weight file."""
        return self.files[group, asked]

    def image(self, asked: str) -> WeightFile:
        """An input picture."""
        return self.files["image", asked]

    def config(self, asked: str) -> WeightFile:
        """A folder of weightless configs."""
        return self.files["config", asked]


def plan_id(image_ids: Sequence[str]) -> str:
    """16 hex digits: equal for the same set of images, whatever their order."""
    return hashlib.sha256("\n".join(sorted(image_ids)).encode()).hexdigest()[:16]


def reorder(columns: Mapping[str, Column], order: Codes) -> dict[str, Column]:
    """The columns with their cells in another order, or some of them."""
    return {key: Column(column.values, column.codes[order]) for key, column in columns.items()}


def recipe_order(recipes: Sequence[Recipe]) -> npt.NDArray[np.int64]:
    """The rank of each recipe, so that the dearest part to load changes least often.

    A checkpoint costs most, then ControlNets, image encoders with their IP-Adapters, the VAE, adapters, embeddings. Within a
    level parts keep the order in which they first appear.
    """

    def ranks(parts: Sequence[object]) -> list[int]:
        seen: dict[object, int] = {}
        return [seen.setdefault(part, len(seen)) for part in parts]

    levels = [
        ranks([(r.engine, r.family, r.config, r.checkpoint, r.ema, r.prediction_type, r.zero_snr, r.dtype) for r in recipes]),
        ranks([recipe.merge for recipe in recipes]),
        ranks([recipe.controlnets for recipe in recipes]),
        ranks([(recipe.image_encoders, recipe.ip_adapters) for recipe in recipes]),
        ranks([(recipe.vae, recipe.text_encoder, recipe.text_encoder_2) for recipe in recipes]),
        ranks([recipe.loras for recipe in recipes]),
        ranks([recipe.embeddings for recipe in recipes]),
        ranks([recipe.upscaler for recipe in recipes]),
    ]
    order = sorted(range(len(recipes)), key=lambda index: tuple(level[index] for level in levels))
    rank = np.empty(len(recipes), dtype=np.int64)
    rank[order] = np.arange(len(recipes))
    return rank


def cut_shards(recipe: Codes) -> Codes:
    """Shard of each cell of an ordered plan: runs of one recipe, cut at a size that depends on the plan alone."""
    count = len(recipe)
    if not count:
        return np.empty(0, dtype=np.int64)
    size = SHARD_CELLS if count <= SMALL_PLAN else SHARD_CELLS_LARGE if count <= HUGE_PLAN else SHARD_CELLS_HUGE
    change = np.flatnonzero(np.diff(recipe)) + 1
    starts = np.concatenate([[0], change])
    run = np.searchsorted(starts, np.arange(count), side="right") - 1
    begins = ((np.arange(count) - starts[run]) % size) == 0
    return np.cumsum(begins) - 1
