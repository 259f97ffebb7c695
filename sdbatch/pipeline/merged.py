"""A checkpoint that is several, merged as they are read: nothing is written, and the files stay mapped from recipe to recipe."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from sdbatch.adapters.read import Tensors
from sdbatch.cell import Recipe
from sdbatch.errors import WeightFileError
from sdbatch.families import Component
from sdbatch.merge.checkpoint import files_of, merge_weights
from sdbatch.merge.source import open_source
from sdbatch.pipeline.checkpoint import rename
from sdbatch.pipeline.configs import Configs
from sdbatch.weights.identify import identify
from sdbatch.weights.prediction import Prediction

_open = lru_cache(maxsize=3)(open_source)
"""A mapped file costs no memory to keep, and a sweep over the ratio needs the same ones again."""


class MergedCheckpoint:
    """The first checkpoint of a recipe, merged with the others."""

    def __init__(self, recipe: Recipe, configs: Configs) -> None:
        assert recipe.merge is not None
        self.recipe = recipe
        self.configs = configs
        self.label = f"checkpoint.{recipe.checkpoint.name}"
        if recipe.ema:
            raise WeightFileError(f"{self.label}: averaged weights cannot be merged. Set checkpoint.ema=false.")
        self._weights = merge_weights([_open(file) for file in files_of(recipe.checkpoint, recipe.merge)], recipe.merge)

    def key(self, part: Component) -> Hashable:
        """The files and the numbers; block weights are the denoiser's alone, so that the others stay when only these change."""
        assert self.recipe.merge is not None
        merge = self.recipe.merge
        if part.name != self.configs.family.denoiser:
            # A list with BASE in front has an even length; BASE is the others' ratio.
            merge = replace(merge, blocks=merge.blocks[:1] if len(merge.blocks) % 2 == 0 else ())
        return self.recipe.checkpoint.sha256, merge

    def component(self, part: Component) -> Tensors:
        """The merged tensors of a component, in the first checkpoint's dtype: as a merged file would hold them."""
        prefix = f"{part.name}."
        state: Tensors = {}
        for name in [name for name in self._weights.likes if name.startswith(prefix)]:
            state[name.removeprefix(prefix)] = self._weights.make(name)
            self._weights.release(name)
        if not state:
            raise WeightFileError(f"{self.label}: it has no {part.name}; choose a whole {self.configs.family.title} checkpoint.")
        return rename(state, part, self.configs, f"{self.label} ({part.name})")

    def prediction(self) -> Prediction:
        """What the first one's header says."""
        identity = identify(Path(self.recipe.checkpoint.path))
        return Prediction(identity.prediction_type, identity.zero_snr)
