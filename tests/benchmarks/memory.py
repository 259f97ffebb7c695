"""Peak memory of a worker for 200 and for 2,000 images: it must not grow with their number.

python -m tests.benchmarks.memory
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.measure import measure, table


def main() -> None:
    costs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (200, 2_000):
            command = [
                sys.executable,
                "-m",
                "sdbatch",
                "steps=1",
                "guidance_scale=1",
                f"seed=range(0,{count})",
                "tracking=none",
                "output.grid=false",
                "-m",
            ]
            costs[f"{count} images"] = measure(command, Path(scratch) / str(count))
    print(table(costs, "200 images"))


if __name__ == "__main__":
    main()
