"""Imports run downwards only, light verbs stay light, and the package lists all of its parts."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sdbatch

PACKAGE = Path(sdbatch.__file__).parent
FLOORS = {
    "cli": 6,
    "__main__": 6,
    "verbs": 5,
    "run": 4,
    "doctor": 4,
    "pipeline": 3,
    "adapters": 2,
    "config": 2,
    "merge": 2,
    "plan": 2,
    "tracking": 2,
    "grid": 2,
    "hub": 1,
    "weights": 1,
    "families": 1,
    "naming": 1,
    "results": 1,
    "cell": 0,
    "errors": 0,
    "importing": 0,
    "__init__": 0,
}
"""Floor of each part; a part imports from its own floor and below."""
TORCH_FLOORS = ("pipeline", "adapters", "merge")


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "sdbatch"]
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "embedded" not in path.parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    own = part_of(path)
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "sdbatch" and rest:
            other = rest.partition(".")[0]
            if other in FLOORS and not (own == "verbs" and other == "cli"):
                assert FLOORS[other] <= FLOORS[own], f"{own} imports {name}"
        if top in ("torch", "diffusers", "transformers", "peft"):
            assert own in TORCH_FLOORS, f"{own} imports {name}"
        if top in ("omegaconf", "hydra"):
            assert own == "config" or path.name == "show.py", f"{own} imports {name}"
        if top == "mlflow":
            assert own in ("tracking", "grid"), f"{own} imports {name}"


def test_every_part_has_its_floor() -> None:
    assert {part_of(path) for path in SOURCES} <= set(FLOORS)


HEAVY = ("torch", "diffusers", "transformers", "mlflow", "pandas")
LIGHT = {
    "plan": "import sdbatch.verbs.plan, sdbatch.run.prepare",
    "run": "import sdbatch.verbs.run, sdbatch.verbs.report",
    "status": "import sdbatch.verbs.status, sdbatch.results.reader",
    "models": "import sdbatch.verbs.models, sdbatch.weights.index",
    "inspect": "import sdbatch.verbs.inspect, sdbatch.weights.identify",
    "worker": "import sdbatch.verbs.worker",
    "merge": "import sdbatch.verbs.merge, sdbatch.verbs.convert",
    "doctor": "import sdbatch.verbs.doctor, sdbatch.doctor.table",
}


@pytest.mark.parametrize("verb", LIGHT)
def test_a_light_verb_imports_nothing_heavy(verb: str) -> None:
    code = f"{LIGHT[verb]}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_pyproject_lists_every_package() -> None:
    listed = set(tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in SOURCES if path.name == "__init__.py"}
    assert listed == there | {"sdbatch.conf", "sdbatch.jobs"}


def test_nothing_in_the_package_loads_code_from_files() -> None:
    for path in SOURCES:
        text = path.read_text()
        for forbidden in ("weights_only=False", "pickle.load", "instantiate(", "trust_remote_code=True", "shell=True"):
            assert forbidden not in text, f"{path}: {forbidden}"
