"""`sdbatch KEY=VALUE ...`: make the images of a configuration. The default verb."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdbatch.config.arguments import read_arguments


def main(arguments: Sequence[str]) -> int:
    """Run, or show what was asked about the configuration. Returns the exit code."""
    asked = read_arguments(arguments)
    if asked.only_asks:
        from sdbatch.verbs.show import show

        return show(asked)
    from sdbatch.plan.outline import axis_summary
    from sdbatch.run.launch import run_job
    from sdbatch.run.prepare import prepare
    from sdbatch.verbs.report import report

    job = prepare(asked)
    if len(job.plan) > 1:
        sys.stderr.write(f"{len(job.plan)} images: {axis_summary(job.plan)}\n")
    return report(run_job(job), job.settings.tracking_uri)
