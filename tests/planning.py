"""Plan a command line inside a test."""

from __future__ import annotations

from typing import Any

from sdbatch.config.arguments import read_arguments
from sdbatch.plan.plan import Plan
from sdbatch.results.ids import texts_of
from sdbatch.run.prepare import Job, prepare
from tests.conftest import BASE


def job_of(*overrides: str, sweep: bool = True) -> Job:
    """The job of a command line, with the workspace's files chosen where it does not."""
    given = [*BASE, *overrides, *(["-m"] if sweep else [])]
    return prepare(read_arguments(given))


def plan_of(*overrides: str, sweep: bool = True) -> Plan:
    """Its plan."""
    return job_of(*overrides, sweep=sweep).plan


def values(plan: Plan, key: str) -> list[Any]:
    """The values of one axis over all cells, in plan order."""
    return [dict(plan.axes(index)).get(key) for index in range(len(plan))]


def image_ids(plan: Plan) -> list[str]:
    """The id of every cell, in plan order."""
    return [image_id for cells in plan.iter_slices() for image_id in texts_of(cells.ids)]
