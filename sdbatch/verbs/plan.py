"""`sdbatch plan KEY=VALUE ...`: what a run would make, load and cost, and every fault in it. Nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdbatch.config.arguments import read_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from sdbatch.plan.plan import Plan


def main(arguments: Sequence[str]) -> int:
    """Plan and print, or show what was asked about the configuration. Returns the exit code."""
    asked = read_arguments(arguments)
    if asked.only_asks:
        from sdbatch.verbs.show import show

        return show(asked)
    from sdbatch.plan.estimate import estimate, images, size
    from sdbatch.plan.outline import axis_lines
    from sdbatch.results.folder import SweepFolder
    from sdbatch.results.reader import read_index
    from sdbatch.run.prepare import prepare
    from sdbatch.run.room import find_shortage

    job = prepare(asked)
    folder = SweepFolder(job.out)
    plan = job.plan.adopt(read_index(folder).done) if folder.is_sweep else job.plan
    told = estimate(plan)
    made = f", {len(plan.made)} of them made already" if len(plan.made) else ""
    lines = [f"{job.settings.name}: {images(len(plan))} in {job.out}{made}"]
    lines += [f"  {line}" for line in axis_lines(plan)]
    lines += [f"  recipes  {len(plan.recipes)}; loads: {told.loads}"]
    lines += [f"  recipe   {text}" for text in told.recipes]
    lines += [f"  disk     about {size(told.disk_bytes)} of images", f"  memory   {size(told.memory_bytes)} of weights at a time"]
    lines += [f"  time     {_time(plan, job.out, told.work_step_px)}", f"  shards   {plan.shards}"]
    left = len(plan) - len(plan.made)
    if shortage := find_shortage(job.out, told.disk_bytes * left / len(plan), left, job.settings.format):
        lines += [f"  warning  {shortage}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _time(plan: Plan, out: Path, work_step_px: float) -> str:
    from sdbatch.plan.pace import find_pace
    from sdbatch.run.display import duration

    if not work_step_px:
        return "none: all is made"
    pace = find_pace(out, {recipe.checkpoint.sha256 for recipe in plan.recipes})
    if pace is None:
        return "not known before images of these checkpoints were made here"
    return f"about {duration(work_step_px * pace.s_per_step_px)} on one {pace.device}, as in {pace.sweep}"
