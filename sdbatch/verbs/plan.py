"""`sdbatch plan KEY=VALUE ...`: what a run would make, load and cost, and every fault in it. Nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdbatch.config.arguments import read_arguments


def main(arguments: Sequence[str]) -> int:
    """Plan and print, or show what was asked about the configuration. Returns the exit code."""
    asked = read_arguments(arguments)
    if asked.only_asks:
        from sdbatch.verbs.show import show

        return show(asked)
    from sdbatch.plan.estimate import estimate, images
    from sdbatch.results.folder import SweepFolder
    from sdbatch.results.reader import read_index
    from sdbatch.run.prepare import prepare

    job = prepare(asked)
    folder = SweepFolder(job.out)
    made = len(job.plan.adopt(read_index(folder).done).made) if folder.is_sweep else 0
    told = estimate(job.plan)
    lines = [f"{job.settings.name}: {images(len(job.plan))} in {job.out}" + (f", {made} of them made already" if made else "")]
    lines += [f"  axis     {key}: {count}" for key, count in job.axes.items()]
    lines += [f"  recipes  {len(job.plan.recipes)}; loads: {told.loads}"]
    lines += [f"  recipe   {text}" for text in told.recipes]
    lines += [f"  disk     about {told.disk} of images", f"  shards   {job.plan.shards}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
