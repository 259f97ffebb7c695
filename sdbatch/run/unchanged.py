"""Whether the weight files of a recipe are still those of the plan, asked before and after they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

from sdbatch.cell import Recipe
from sdbatch.errors import WeightFileError
from sdbatch.weights.cache import FileState
from sdbatch.weights.hashes import Hasher


class Unchanged:
    """Remembers which files were found right, so that asking again costs a look at their time stamps."""

    def __init__(self, hasher: Hasher | None = None) -> None:
        self.hasher = hasher or Hasher()
        self._right: dict[tuple[str, str], str] = {}

    def check(self, recipe: Recipe) -> None:
        """Raises: WeightFileError for a file that was replaced, changed or cut since the plan was made, or is gone."""
        parts = [("checkpoint", recipe.checkpoint), *((key, file) for key, _, file in recipe.parts())]
        for key, file in parts:
            path = Path(file.path)
            state = _state_of(path)
            if self._right.get((file.path, file.sha256)) == state:
                continue
            if (found := self.hasher.sha256(path)) != file.sha256:
                raise WeightFileError(
                    f"{key}: {path} has changed since the plan was made ({file.sha256[:10]}, now {found[:10]}). "
                    "Run the sweep's own command again: it makes the images of the new file, and keeps the old."
                )
            self._right[file.path, file.sha256] = state


def _state_of(path: Path) -> str:
    """What tells that a file, or any file of a folder, is still the same."""
    if not path.is_dir():
        return FileState.of(path).to_key() if path.exists() else "gone"
    inside = [Path(root) / name for root, _, names in os.walk(path) for name in names]
    return " ".join(f"{file}:{FileState.of(file).to_key()}" for file in sorted(inside) if file.exists())
