"""Pictures that a job names are looked for beside it, then from where the program is run; those of the command line only there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbatch.plan.draft import Draft
from sdbatch.plan.identity import FILE_LEAVES
from sdbatch.plan.tree import Tree, expand, get, overlay

PICTURES = tuple(pattern for pattern, group in FILE_LEAVES.items() if group == "image")


def look_beside(draft: Draft, job: Path | None, given: Collection[str]) -> Draft:
    """The same cells with the pictures that lie in the job's folder by their paths. `given` are the keys of the command line."""
    if job is None:
        return draft
    typed = {key.removeprefix("matrix.product.") for key in given}
    groups = [_configuration(config, job, typed) for config in draft.groups]
    keys = {key for config in groups for pattern in PICTURES for key, _ in expand(config, pattern)} - typed
    columns = {
        key: replace(column, values=[_path(job, value) for value in column.values]) if key in keys else column
        for key, column in draft.columns.items()
    }
    return replace(draft, groups=groups, columns=columns)


def _configuration(config: Tree, job: Path, typed: Collection[str]) -> Tree:
    named = {key: get(config, key) for pattern in PICTURES for key, _ in expand(config, pattern) if key not in typed}
    return overlay(config, {key: path for key, value in named.items() if (path := _path(job, value)) != value})


def _path(job: Path, value: Any) -> Any:
    return str(job / value) if isinstance(value, str) and value and (job / value).is_file() else value
