"""The plan on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import BASE


def test_neither_planning_nor_reading_a_plan_imports_pandas(workspace: Path) -> None:
    """It costs half a second of CPU in the driver and in every worker."""
    code = """
import sys
from pathlib import Path
from sdbatch.config.arguments import read_arguments
from sdbatch.plan.store import PlanFile, write_plan
from sdbatch.run.prepare import prepare
write_plan(prepare(read_arguments(sys.argv[1:])).plan, Path("plan.parquet"))
plan = PlanFile(Path("plan.parquet"))
assert sum(len(plan.shard(shard)) for shard in range(plan.shards)) == 16
assert list(plan.iter_keys()) and plan.shard_recipes().size
assert "pandas" not in sys.modules
"""
    swept = ["seed=1,2", "steps=3,4", "prompt=a,b", "lora=[red]", "lora.red.weight=0,0.5", "-m"]
    done = subprocess.run([sys.executable, "-c", code, *BASE, *swept], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
