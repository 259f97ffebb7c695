"""The verbs that need no weights, run on a finished sweep: none of them loads what makes verbs slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdbatch.cli import main
from tests.conftest import BASE

HEAVY = ("torch", "diffusers", "transformers", "scipy")
ANSWER = f"""
import sys
from sdbatch.cli import main
code = main(sys.argv[1:])
print(code, [name for name in {HEAVY} if name in sys.modules], "mlflow" in sys.modules, file=sys.stderr)
"""
VERBS = [
    ["plan", *BASE, "seed=range(0,8)", "-m"],
    ["resume", "sweep"],
    ["status", "sweep"],
    ["models"],
    ["inspect", "models/loras/red.safetensors"],
    ["grid", "from=sweep", "to=drawn"],
    ["verify", "sweep", "full=true"],
    ["export", "sweep"],
    ["compact", "sweep"],
    ["doctor", "."],
    ["--help"],
]
BY_MLFLOW = [["grid", "to=drawn"], ["track", "sweep"]]
"""MLflow itself takes a second to import."""


@pytest.fixture
def sweep(workspace: Path) -> Path:
    """Four images, and what MLflow was told of them."""
    made = ["engine=rehearsal", "steps=1", "width=64", "height=64", "output.grid=false", "seed=range(0,4)", "-m", "out=sweep"]
    assert main([*BASE, *made, "tracking.uri=sqlite:///outputs/mlflow.db"]) == 0
    return workspace / "sweep"


def test_no_verb_that_needs_no_weights_loads_torch(sweep: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for words in [*VERBS, *BY_MLFLOW]:
        ended = subprocess.run([sys.executable, "-c", ANSWER, *words], cwd=sweep.parent, env=environment, capture_output=True, text=True)
        said = ended.stderr.splitlines()[-1]
        assert said == f"0 [] {words in BY_MLFLOW}", (words, ended.stdout, ended.stderr)
