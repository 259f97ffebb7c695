"""How far a sweep is, from its folder alone: the ends of its parts and two columns of its plan, never its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdbatch.plan.estimate import describe
from sdbatch.plan.store import PlanFile
from sdbatch.results.commit import check_keys
from sdbatch.results.folder import FLAT_LIMIT, SweepFolder
from sdbatch.results.ids import find_in, halves_of, order_of
from sdbatch.results.keys import Made, read_keys
from sdbatch.results.reader import Index, iter_faulty, read_index
from sdbatch.results.row import axes_of, recipe_id
from sdbatch.results.schema import OK, STATUSES
from sdbatch.run.roster import iter_owners

_LOST = len(STATUSES)
_LEFT = _LOST + 1

SHOWN_CHARS = 200
"""Of what tells a failed image from others, which may be a prompt of any length."""


@dataclass(frozen=True)
class Progress:
    """The state of a sweep."""

    name: str
    cells: int
    counts: dict[str, int]
    """Cells of the plan by status; `left` were not tried, `lost` have a row but no image any more."""
    looked: bool
    """Whether every image was looked at; otherwise none is known to be lost."""
    repeated: int
    """Rows that do not count, since another row of the same image does."""
    parts: int
    unreadable: dict[Path, str]
    images_per_s: float | None
    """Of the workers that are busy."""
    workers: dict[str, Made]
    """All rows by worker, repeated ones included."""
    busy: list[str]
    """Workers that hold a claim."""
    recipes: dict[str, tuple[int, int]]
    """Description -> cells of the plan, of these made."""
    index: Index

    @property
    def left(self) -> int:
        """Cells that a resume makes, those tried in vain aside."""
        return self.counts["left"] + self.counts["lost"]

    @property
    def eta_s(self) -> float | None:
        """How long the rest takes at that rate; None when nobody works on it, or nothing tells."""
        return self.left / self.images_per_s if self.images_per_s and self.busy else None

    def facts(self) -> dict[str, Any]:
        """As JSON tells it."""
        return {
            "name": self.name,
            "cells": self.cells,
            **self.counts,
            "looked_at_images": self.looked,
            "repeated": self.repeated,
            "parts": self.parts,
            "unreadable": [part.name for part in self.unreadable],
            "images_per_s": self.images_per_s,
            "eta_s": self.eta_s,
            "busy": self.busy,
            "workers": {name: {"ok": made.ok, "faulty": made.faulty, "seconds": made.seconds} for name, made in self.workers.items()},
            "recipes": {name: {"cells": cells, "ok": ok} for name, (cells, ok) in self.recipes.items()},
        }


def measure(folder: SweepFolder, full: bool = False) -> Progress:
    """Count every cell of the plan exactly.

    Whether the images are there is looked at in sweeps of up to FLAT_LIMIT cells, and with `full`, which also checks
    every byte of every part. Raises FolderError when there is no plan.
    """
    plan = PlanFile(folder.plan)
    looked = full or plan.cells <= FLAT_LIMIT
    index = read_index(folder, check_keys if full else read_keys, looked)
    status = np.where(index.gone, np.uint8(_LOST), index.status)
    order = order_of(index.ids)
    known, status = halves_of(index.ids, order), np.append(status[order], np.uint8(_LEFT))
    counts = np.zeros(_LEFT + 1, dtype=np.int64)
    planned, made = (np.zeros(len(plan.recipes), dtype=np.int64) for _ in range(2))
    for group, _, recipes in plan.iter_keys():
        found = status[find_in(known, group)]  # -1, not there, is the last
        counts += np.bincount(found, minlength=len(counts))
        planned += np.bincount(recipes, minlength=len(planned))
        made += np.bincount(recipes[found == STATUSES.index(OK)], minlength=len(made))
    busy = sorted({owner.worker for _, owner in iter_owners(folder.claims)})
    names = [f"{describe(recipe)} ({recipe_id(recipe)})" for recipe in plan.recipes]
    return Progress(
        name=plan.name,
        cells=plan.cells,
        counts=dict(zip([*STATUSES, "lost", "left"], counts.tolist(), strict=True)),
        looked=looked,
        repeated=index.repeated,
        parts=len(index.parts),
        unreadable=index.unreadable,
        images_per_s=_rate(index, busy),
        workers=dict(sorted(index.workers.items())),
        busy=busy,
        recipes=dict(zip(names, zip(planned.tolist(), made.tolist(), strict=True), strict=True)),
        index=index,
    )


def iter_failures(folder: SweepFolder, index: Index) -> Iterator[str]:
    """Every cell that was tried in vain, with what sets it apart and the reason. Reads only the parts that have one."""
    for table in iter_faulty(folder, index, ["image_id", "status", "error", "axes", "seed", "prompt"]):
        for row in table.to_pylist():
            told = ", ".join(f"{key}={value}" for key, value in axes_of(row).items()) or f"seed={row['seed']}, {row['prompt']}"
            axes = told[:SHOWN_CHARS].replace("\n", " ")
            yield f"{row['status']:<6} {row['image_id']}  {axes}: {row['error']}"


def _rate(index: Index, busy: Sequence[str]) -> float | None:
    """Images per second of these workers together: each by its own clock, or by what its device took where that does not tell yet."""
    rate = 0.0
    for worker in busy:
        own = index.paces[worker].images_per_s() if worker in index.paces else None
        made = index.workers.get(worker, Made())
        rate += own or (made.seconds and (made.ok + made.faulty) / made.seconds)
    return rate or None
