"""Which options a diffusers scheduler takes, read from its source: importing it would import torch."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

NOT_OPTIONS = frozenset({"self", "model_output", "timestep", "sample", "return_dict", "generator", "variance_noise", "kwargs"})


@cache
def scheduler_options(scheduler: str) -> frozenset[str]:
    """The names that the class's constructor and its `step` take; empty when the class cannot be found."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        return frozenset()
    for path in sorted((Path(spec.origin).parent / "schedulers").glob("scheduling_*.py")):
        text = path.read_text(encoding="utf-8")
        if f"class {scheduler}(" in text:
            return frozenset(_arguments(ast.parse(text), scheduler)) - NOT_OPTIONS
    return frozenset()


def _arguments(module: ast.Module, scheduler: str) -> set[str]:
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == scheduler:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in ("__init__", "step"):
                    found.update(argument.arg for argument in (*method.args.args, *method.args.kwonlyargs))
    return found
