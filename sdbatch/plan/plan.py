"""The plan: every cell of a sweep in the order that loads least, named by content, cut into shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sdbatch.cell import Cell, Recipe, WeightFile
from sdbatch.plan.axis import Codes, Column, Points
from sdbatch.plan.bitmap import Bitmap
from sdbatch.plan.cells import cell_of
from sdbatch.plan.image_ids import ImageIds
from sdbatch.plan.order import Order
from sdbatch.plan.part import Parts
from sdbatch.plan.repeat import find_repeated
from sdbatch.plan.tree import Tree, overlay
from sdbatch.results.ids import IdArray, Ids, texts_of

SMALL_PLAN = 100_000
HUGE_PLAN = 10_000_000
SHARD_CELLS = 32
SHARD_CELLS_LARGE = 256
SHARD_CELLS_HUGE = 2560
SLICE_CELLS = 262_144
"""Cells that are computed at a time: their numbers fit into a processor's cache, and calls cost little."""


@dataclass(frozen=True)
class Slice:
    """Neighbouring cells of a plan."""

    points: Points
    group: Codes
    """The configuration of each."""
    recipe: Codes
    shard: Codes
    """-1 for cells that were made before this plan and need no work."""
    ids: IdArray


@dataclass(frozen=True)
class Plan:
    """A table with one row per image, which is never whole in memory: any slice of it is computed when it is asked for."""

    name: str
    groups: list[Tree]
    """Configurations; a cell is one of them with its columns overlaid."""
    recipes: list[Recipe]
    files: dict[tuple[str, str], WeightFile]
    """(group, name as typed) -> file."""
    columns: dict[str, Column]
    """Swept keys."""
    labels: dict[str, Column]
    """Swept group choices, as typed."""
    choices: Parts
    """The space by configuration."""
    image_ids: ImageIds
    order: Order
    recipe_of_class: Codes
    """The recipe of each class of the order; rising."""
    left: Bitmap
    """Which cells of the order need work."""
    made: Bitmap
    """Which of them were made before this plan; they come first."""

    def __len__(self) -> int:
        return len(self.made) + len(self.left)

    @cached_property
    def recipe_cells(self) -> tuple[Codes, Codes]:
        """Of each recipe, how many cells were made and how many are left."""
        bounds = self.order.starts[np.searchsorted(self.recipe_of_class, np.arange(len(self.recipes) + 1))].tolist()
        made, left = (np.diff([chosen.rank(bound) for bound in bounds]) for chosen in (self.made, self.left))
        return made, left

    @cached_property
    def _shard_cells(self) -> int:
        return shard_cells(len(self.left))

    @cached_property
    def _shards_before(self) -> Codes:
        """Of each recipe, how many shards come before its first; then, of all."""
        return np.cumsum([0, *-(-self.recipe_cells[1] // self._shard_cells)])

    @property
    def shards(self) -> int:
        """Number of shards: runs of one recipe, cut at a size that depends on the plan alone."""
        return int(self._shards_before[-1])

    @cached_property
    def plan_id(self) -> str:
        """16 hex digits: equal for the same set of images."""
        return plan_id(part.ids for part in self.iter_slices())

    def slice(self, first: int, last: int) -> Slice:
        """The cells from one place to another."""
        made = len(self.made)
        before = self.made.take(min(first, made), min(last, made))
        after = self.left.take(max(first - made, 0), max(last - made, 0))
        points = [np.concatenate(pair) for pair in zip(self.order.at(before), self.order.at(after), strict=True)]
        recipe = self.recipe_of_class[np.concatenate([self.order.class_of(before), self.order.class_of(after)])]
        own = recipe[len(before) :]
        place = np.arange(len(own)) + max(first - made, 0) - np.cumsum([0, *self.recipe_cells[1]])[own]
        shard = np.concatenate([np.full(len(before), -1), self._shards_before[own] + place // self._shard_cells])
        return Slice(points, self.choices.at(points), recipe, shard, self.image_ids.at(points))

    def iter_slices(self) -> Iterator[Slice]:
        """All cells, some at a time."""
        return (self.slice(first, min(first + SLICE_CELLS, len(self))) for first in range(0, len(self), SLICE_CELLS))

    def without_repeated(self) -> Plan:
        """The same plan with each image once: where it is written first."""

        def slices() -> Iterator[tuple[Codes, Codes, IdArray]]:
            for places, points in self._iter_left():
                yield places, np.ravel_multi_index(list(points), self.choices.sizes), self.image_ids.at(points)

        repeated = Bitmap.of(len(self.order), find_repeated(len(self.left), slices))
        return replace(self, left=self.left.without(repeated))

    def adopt(self, done: Ids) -> Plan:
        """The same plan without work for cells that are done: these come first, the rest is cut into shards anew."""
        if not done:
            return self
        made = Bitmap.of(len(self.order), (places[done.contains(self.image_ids.at(points))] for places, points in self._iter_left()))
        return replace(self, made=made, left=self.left.without(made))

    def _iter_left(self) -> Iterator[tuple[Codes, Points]]:
        for first in range(0, len(self.left), SLICE_CELLS):
            places = self.left.take(first, min(first + SLICE_CELLS, len(self.left)))
            yield places, self.order.at(places)

    def axes(self, cell: int) -> tuple[tuple[str, Any], ...]:
        """The axes of the sweep and this cell's values."""
        return tuple(self._values(cell, {**self.labels, **self.columns}).items())

    def config(self, cell: int) -> Tree:
        """The configuration of a cell."""
        return overlay(self.groups[int(self.slice(cell, cell + 1).group[0])], self._values(cell, self.columns))

    def _values(self, cell: int, columns: Mapping[str, Column]) -> dict[str, Any]:
        points = self.slice(cell, cell + 1).points
        codes = {key: int(column.at(points)[0]) for key, column in columns.items()}
        return {key: columns[key].values[code] for key, code in codes.items() if code >= 0}

    def cell(self, index: int) -> Cell:
        """A cell, complete."""
        own = self.slice(index, index + 1)
        recipe = self.recipes[int(own.recipe[0])]
        return cell_of(self.config(index), recipe, Lookup(self.files), texts_of(own.ids)[0], self.axes(index))


def shard_cells(left: int) -> int:
    """Cells of a shard where so many need work: many shards share out evenly, few cost little to claim."""
    return SHARD_CELLS if left <= SMALL_PLAN else SHARD_CELLS_LARGE if left <= HUGE_PLAN else SHARD_CELLS_HUGE


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


def plan_id(parts: Iterable[IdArray]) -> str:
    """16 hex digits: equal for the same set of images, whatever their order, and known without having them all at once.

    Each id is scrambled before they are summed (as splitmix64 does), for ids are sums themselves.
    """
    total = 0
    for ids in parts:
        mixed = ids[:, 0] + ids[:, 1] * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))
    return f"{total % 2**64:016x}"


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
        ranks([(recipe.upscaler, recipe.hires_upscaler) for recipe in recipes]),
    ]
    order = sorted(range(len(recipes)), key=lambda index: tuple(level[index] for level in levels))
    rank = np.empty(len(recipes), dtype=np.int64)
    rank[order] = np.arange(len(recipes))
    return rank
