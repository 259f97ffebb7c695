"""Checkpoints merged and adapters baked into them: into memory for a sweep, or into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdbatch.adapters.delta import Delta
from sdbatch.adapters.lora import match_lora
from sdbatch.adapters.read import read_tensors
from sdbatch.cell import Merge, Strength, WeightFile
from sdbatch.errors import ConfigError, WeightFileError
from sdbatch.merge.layout import SINGLE, TRAINING_PREFIXES, entries_of, extras_of, like_source
from sdbatch.merge.metadata import to_metadata
from sdbatch.merge.source import Source, open_source
from sdbatch.merge.table import find_fault
from sdbatch.merge.weights import Weights, adaptable_shapes, baked, cast, find_misfits, merged, plain
from sdbatch.merge.writer import Entry, committed, total_bytes, write_safetensors
from sdbatch.weights.fit import describe
from sdbatch.weights.identify import identify_header

OnProgress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Order:
    """A checkpoint to be made."""

    checkpoint: WeightFile
    out: Path
    merge: Merge | None = None
    loras: tuple[tuple[WeightFile, Strength], ...] = ()
    """Adapters to bake in."""
    dtype: str | None = None
    """A key of DTYPES; None: of each tensor as in the first checkpoint."""


def merge_weights(sources: Sequence[Source], merge: Merge) -> Weights:
    """The weights of a merge, made tensor by tensor.

    Raises:
        ConfigError: numbers that cannot be, or block weights for another model.
        WeightFileError: the checkpoints do not fit together.
    """
    if fault := find_fault(merge):
        raise ConfigError(f"{fault[0]}: {fault[1]}")
    first, *others = [plain(source) for source in sources]
    for source, other in zip(sources[1:], others, strict=True):
        _refuse_misfit(sources[0], first, source, other)
    return merged([first, *others], merge)


def _refuse_misfit(one: Source, first: Weights, other: Source, second: Weights) -> None:
    misfits = list(find_misfits(first, second))
    if misfits:
        kinds = [describe(identify_header(source.header)) for source in (one, other)]
        raise WeightFileError(
            f"{one.file.name} and {other.file.name} cannot be merged: the first is {kinds[0]}, the other {kinds[1]}; "
            f"{len(misfits)} tensors differ ({misfits[0]}). Merge checkpoints of one family and variant."
        )
    if not set(one.components) & set(other.components):
        raise WeightFileError(f"{one.file.name} and {other.file.name} have no component in common, so there is nothing to merge.")


def files_of(checkpoint: WeightFile, merge: Merge | None) -> list[WeightFile]:
    """The checkpoints of a merge in the order A, B, C."""
    return [file for file in (checkpoint, *((merge.b, merge.c) if merge else ())) if file is not None]


def make_checkpoint(order: Order, on_progress: OnProgress, settle: Callable[[str], str] = str) -> None:
    """Write a merged or baked checkpoint. `settle` puts hashes that come later into what it says of itself.

    Raises:
        ConfigError: numbers that cannot be.
        WeightFileError: files that do not fit, or a name that is taken.
    """
    with committed(order.out) as path:
        sources = [open_source(file) for file in files_of(order.checkpoint, order.merge)]
        first = sources[0]
        weights = merge_weights(sources, order.merge) if order.merge else plain(first)
        if order.loras:
            weights = bake_loras(weights, order.loras)
        if order.dtype is not None:
            weights = cast(weights, DTYPES[order.dtype])
        identity = identify_header(first.header)
        layout = like_source(first, weights)
        extras = extras_of(first, lambda name: not name.startswith(TRAINING_PREFIXES))
        entries = entries_of(layout.files[SINGLE], weights, extras)
        metadata = to_metadata(order.out.stem, identity, first.metadata, _to_recipe(order), _all_files(order))
        write_safetensors(path, entries, metadata, counting([entries], on_progress), settle)


def counting(files: Sequence[Mapping[str, Entry]], on_progress: OnProgress) -> Callable[[int], None]:
    """Adds up bytes for a progress line."""
    done, total = 0, total_bytes(files)

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, total)

    return count


def bake_loras(weights: Weights, loras: Sequence[tuple[WeightFile, Strength]]) -> Weights:
    """The weights with LoRAs added for good.

    Raises:
        WeightFileError: a LoRA of another family, or one of which only a part can be added.
    """
    shapes = adaptable_shapes(weights)
    adapters: list[tuple[dict[str, Delta], float]] = []
    for file, strength in loras:
        lora = match_lora(file, read_tensors(file), shapes)
        if lora.unmatched:
            raise WeightFileError(
                f"lora.{file.name}: {len(lora.unmatched)} of its keys fit nothing in the checkpoint ({lora.unmatched[0]})."
            )
        for component, found in lora.deltas.items():
            deltas = {f"{component}.{module}": delta for module, delta in found.items()}
            if bare := [name for name, delta in deltas.items() if delta.bias is not None and f"{name}.bias" not in weights.likes]:
                raise WeightFileError(f"lora.{file.name}: {bare[0]} has no bias in the checkpoint, so that the LoRA's has no place there.")
            adapters.append((deltas, _strength_on(component, strength)))
    return baked(weights, adapters)


def _strength_on(component: str, strength: Strength) -> float:
    return strength.text_encoder if component.startswith("text_encoder") else strength.model


def _all_files(order: Order) -> list[WeightFile]:
    return [*files_of(order.checkpoint, order.merge), *(file for file, _ in order.loras)]


def _to_recipe(order: Order) -> dict[str, object]:
    recipe: dict[str, object] = {"checkpoint": order.checkpoint}
    if order.merge:
        recipe["merge"] = order.merge
    if order.loras:
        recipe["loras"] = tuple((file, strength.model, strength.text_encoder) for file, strength in order.loras)
    return recipe | ({"dtype": order.dtype} if order.dtype else {})
