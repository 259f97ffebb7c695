"""Reads a checkpoint component by component: a single file in any dialect, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from sdbatch.adapters.read import TensorFile, Tensors, read_folder, read_tensors
from sdbatch.cell import Recipe, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.families import Component, Family
from sdbatch.naming import find_naming
from sdbatch.naming.file import EMA, ema_name, find_alone
from sdbatch.pipeline.configs import Configs
from sdbatch.pipeline.original import RENAMERS, unscale
from sdbatch.weights.identify import identify
from sdbatch.weights.prediction import Prediction


class Checkpoint(Protocol):
    """Where the weights of a recipe's model come from, whatever holds them."""

    def key(self, part: Component) -> Hashable:
        """What the component's tensors are: where two checkpoints have equal keys, they hold equal weights."""
        ...

    @property
    def label(self) -> str:
        """How errors name it: `checkpoint.NAME`."""
        ...

    def component(self, part: Component) -> Tensors:
        """The tensors of a component under its module's own names, in the dtype they are stored in.

        Raises:
            WeightFileError: it holds no such component, or one that cannot be read.
        """
        ...

    def prediction(self) -> Prediction:
        """What its headers say of the training target."""
        ...


class FileCheckpoint:
    """A single file, opened once; its tensors are read when they are used."""

    def __init__(self, recipe: Recipe, configs: Configs) -> None:
        self.file = recipe.checkpoint
        self.is_ema = recipe.ema
        self.configs = configs
        self.label = f"checkpoint.{self.file.name}"
        self._read: TensorFile | None = None

    def key(self, part: Component) -> Hashable:
        """The file, and for the denoiser which of its two sets of weights."""
        return self.file.sha256, self.is_ema and part.name == self.configs.family.denoiser

    def component(self, part: Component) -> Tensors:
        """The tensors under the component's prefix, renamed."""
        if self._read is None:
            self._read = read_tensors(self.file)
        tensors = self._read.tensors
        family = self.configs.family
        found = find_part(tensors, part, family)
        if not found:
            shown = ", ".join(list(tensors)[:3])
            raise WeightFileError(
                f"{self.label}: it has no {part.name} ({part.prefixes[0]}...); it holds {shown}, ... "
                f"Choose a whole {family.title} checkpoint{_or_set(part, family)}."
            )
        if self.is_ema and part.name == family.denoiser:
            found = self._take_ema(tensors, found, part)
        self._read.read_ahead(found.values())
        return rename(found, part, self.configs, f"{self.label} ({part.name})")

    def prediction(self) -> Prediction:
        """From the file's header."""
        return _prediction_of(self.file)

    def _take_ema(self, tensors: Tensors, found: Tensors, part: Component) -> Tensors:
        """The averaged weights, which are kept under the same names without dots."""
        flat = {key: ema_name(part.prefixes[0] + key) for key in found}
        if missing := [name for name in flat.values() if name not in tensors]:
            raise WeightFileError(
                f"{self.label}: checkpoint.ema=true asks for averaged weights, but {len(missing)} are not in the file "
                f"(first {missing[0]}). Set checkpoint.ema=false."
            )
        return {key: tensors[name] for key, name in flat.items()}


class FolderCheckpoint:
    """A diffusers folder."""

    def __init__(self, recipe: Recipe, configs: Configs) -> None:
        self.file = recipe.checkpoint
        self.configs = configs
        self.label = f"checkpoint.{self.file.name}"
        if recipe.ema:
            raise WeightFileError(f"{self.label}: a diffusers folder has one set of weights. Set checkpoint.ema=false.")

    def key(self, part: Component) -> Hashable:
        """The folder by content."""
        return self.file.sha256

    def component(self, part: Component) -> Tensors:
        """The tensors of the component's folder."""
        state = read_folder(self.file, Path(self.file.path) / part.name)
        return rename(state, part, self.configs, f"{self.label} ({part.name})")

    def prediction(self) -> Prediction:
        """From the scheduler's config, as the header of the folder has it."""
        return _prediction_of(self.file)


def find_part(tensors: Tensors, part: Component, family: Family) -> Tensors:
    """The tensors of a component in a single file, without their prefix; none when it is not there."""
    for prefix in part.prefixes:
        if prefix:
            found = take(tensors, prefix)
        else:
            claimed = tuple(known for other in family.components for known in other.prefixes if known)
            found = {key: tensor for key, tensor in tensors.items() if not key.startswith((*claimed, EMA))}
            found = found if find_naming(found) == part.name else {}
        if found:
            return found
    return {}


def take(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def read_replacement(file: WeightFile, part: Component, configs: Configs) -> Tensors:
    """The tensors of a component from a file or folder that replaces it."""
    path = Path(file.path)
    what = f"{part.name}.{file.name}"
    if path.is_dir():
        return rename(read_folder(file, path / part.name if (path / part.name).is_dir() else path), part, configs, what)
    tensors = read_tensors(file).tensors
    return rename(take(tensors, find_alone(tensors, part.name)), part, configs, what)


def rename(state: Tensors, part: Component, configs: Configs, what: str) -> Tensors:
    """The tensors under the names of the component's module."""
    try:
        return RENAMERS[part.cls](unscale(state), configs.component(part))
    except (KeyError, RuntimeError, ValueError) as error:
        raise WeightFileError(f"{what}: its tensors are not those of {configs.family.title} ({error}).") from error


def _or_set(part: Component, family: Family) -> str:
    return "" if part.name == family.denoiser else f", or set {part.name}=FILE"


@lru_cache(maxsize=8)
def _prediction_of(file: WeightFile) -> Prediction:
    identity = identify(Path(file.path))
    return Prediction(identity.prediction_type, identity.zero_snr)
