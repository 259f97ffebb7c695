"""The tally of a large sweep: counts from the ends of its parts, parameters from its plan, and never a row.

Such a sweep is one run with counts and rates over time. Its tables are not sent: the run's tag `sdbatch.out` says where
they are, and anything that reads Parquet compares them better than MLflow can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdbatch.errors import FolderError
from sdbatch.plan.store import PlanFile
from sdbatch.plan.tree import get
from sdbatch.results.arrow import integers
from sdbatch.results.commit import read_part
from sdbatch.results.folder import SweepFolder
from sdbatch.results.reader import Index
from sdbatch.results.schema import OK, STATUSES
from sdbatch.tracking.tally import PARAMETERS, SAMPLE, Group, Sample, Tally

LARGE = 10_000
"""Images of a plan above which its sweep is projected so."""

_KEYS = {
    "family": "family.name",
    "checkpoint": "checkpoint.file",
    "vae": "vae.file",
    "text_encoder": "text_encoder.file",
    "sampler": "sampler.name",
}
"""Parameter of a run -> key of the configuration, where they are not the same."""


def count_index(sweep: SweepFolder, index: Index, samples: int) -> Tally:
    """The tally of all rows that count."""
    about = sweep.read_about()
    counts = index.counts()
    total = Group(
        {},
        done=counts[OK],
        failed=sum(counts.values()) - counts[OK],
        seconds=sum(made.seconds for made in index.workers.values()),
        first_ms=int(index.made_us.min()) // 1000 if len(index) else 0,
        last_ms=int(index.made_us.max(initial=0)) // 1000,
        samples=_samples(index, samples),
    )
    axes: Mapping[str, int] = about.get("axes") or {}
    return Tally(
        total=total,
        constants=_constants(sweep),
        axes={key: {f"{count} values": None} for key, count in axes.items()},
        versions=dict(about.get("versions") or {}),
        worker_s={name: (made.ok, made.seconds) for name, made in index.workers.items()},
    )


def _constants(sweep: SweepFolder) -> dict[str, Any]:
    """What all cells of the plan share, and is told of a run."""
    try:
        plan = PlanFile(sweep.plan)
    except FolderError:
        return {}
    found: dict[str, Any] = {}
    for name in PARAMETERS:
        key = _KEYS.get(name, name)
        values = {repr(value): value for value in (get(config, key) for config in plan.groups)}
        if key not in plan.columns and len(values) == 1 and (value := next(iter(values.values()))) is not None:
            found[name] = value
    return found


def _samples(index: Index, most: int) -> list[Sample]:
    """The first images of the first part that has any."""
    made = np.flatnonzero(index.status == STATUSES.index(OK))
    if not len(made):
        return []
    part = int(index.part[made[0]])
    slots = index.slot[made[index.part[made] == part][:most]]
    rows = read_part(index.parts[part], SAMPLE).take(integers(slots.astype(np.int64)))
    return [Sample.of(row) for row in rows.to_pylist() if row["image"]]
