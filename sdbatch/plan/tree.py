"""Key paths into plain nested dictionaries: `lora.style_a.weight`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

Tree = dict[str, Any]


def get(tree: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a key path, or the default."""
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = cast(Mapping[str, Any], node)[part]
    return node


def has(tree: Mapping[str, Any], path: str) -> bool:
    """Whether the key path is there."""
    missing = object()
    return get(tree, path, missing) is not missing


def overlay(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
    """A copy with these key paths set; untouched branches are shared."""
    result: Tree = dict(tree)
    for path, value in values.items():
        node = result
        *parents, last = path.split(".")
        for part in parents:
            node[part] = dict(cast(Tree, node.get(part) or {}))
            node = cast(Tree, node[part])
        node[last] = value
    return result


def expand(tree: Mapping[str, Any], pattern: str) -> list[tuple[str, str]]:
    """(key path, canonical path) of a pattern: `lora.*.weight` gives `lora.style_a.weight` and `lora.0.weight` and so on.

    The canonical path names a stack item by its place, so that renaming a file does not rename its images.
    """
    if ".*." not in pattern:
        return [(pattern, pattern)]
    stack, _, leaf = pattern.partition(".*.")
    items = cast(Sequence[str], list(get(tree, stack) or {}))
    return [(f"{stack}.{name}.{leaf}", f"{stack}.{place}.{leaf}") for place, name in enumerate(items)]
