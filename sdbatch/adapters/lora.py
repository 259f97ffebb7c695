"""LoRA and its relatives: any dialect, read and matched to the modules of one model. `stack` attaches what comes out.

Matching needs only the names and shapes of the model's weights, so that files can be baked into files too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sdbatch.adapters.delta import Delta, roll_rows, slice_rows
from sdbatch.adapters.dialect import BUNDLED, flatten, group_by_module, split_component
from sdbatch.adapters.form import build_delta
from sdbatch.adapters.names import Target, name_table
from sdbatch.adapters.read import TensorFile, read_tensors
from sdbatch.adapters.shapes import Shapes, shapes_of
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.families import to_title
from sdbatch.weights.header import FlawError
from sdbatch.weights.identify import identify
from sdbatch.weights.peft import PeftSettings, component_of, read_metadata, read_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, matched to the modules of one model."""

    name: str
    deltas: dict[str, dict[str, Delta]]
    """component -> module -> what is done to it."""
    applied_keys: int
    total_keys: int
    unmatched: tuple[str, ...] = field(default=())
    """Names in the file that fit nothing in the model."""
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    """Embeddings bundled with it: word -> component -> vectors [vectors, C]."""


def load_lora(file: WeightFile, components: Mapping[str, nn.Module], family: str = "", *, strict: bool = False) -> Lora:
    """Read a LoRA and match it to the components of a model.

    Args:
        file: The LoRA.
        components: The model's parts by name: `unet` or `transformer`, `text_encoder`, `text_encoder_2`.
        family: The model's family, for messages.
        strict: Refuse a file of which only a part can be applied.

    Raises:
        WeightFileError: nothing matches, a size differs (another family), or a form that cannot be applied.
    """
    lora = match_lora(file, read_tensors(file), {name: shapes_of(part) for name, part in components.items()}, family)
    if lora.unmatched:
        told = _partly_applied(lora)
        if strict:
            raise WeightFileError(f"{told} lora.{file.name}.strict=false takes it as it is.")
        _warn_once(told)
    return lora


def match_lora(file: WeightFile, content: TensorFile, components: Mapping[str, Shapes], family: str = "") -> Lora:
    """Match the tensors of a LoRA to the modules of a model, by names and shapes alone.

    Raises:
        WeightFileError: as `load_lora`.
    """
    try:
        groups, unmatched = group_by_module(content.tensors)
    except WeightFileError as error:
        raise WeightFileError(f"lora.{file.name}: {error}") from None
    settings, own = _read_settings(file, content.metadata, components)
    words = _bundled(content.tensors)
    unmatched = [key for key in unmatched if not BUNDLED.match(key)]
    tables = {name: name_table(shapes) for name, shapes in components.items()}
    deltas: dict[str, dict[str, Delta]] = {}
    applied = sum(len(vectors) for vectors in words.values())
    for key, parts in groups.items():
        candidates, bare = split_component(key)
        flat = flatten(bare)
        component = next((name for name in own or candidates if flat in tables.get(name, {})), None)
        if component is None:
            unmatched.append(key)
            continue
        applied += len(parts)
        target = tables[component][flat]
        parts = _with_alpha(parts, settings[component], bare)
        found = _compute(file, key, parts, target, components[component])
        if twice := found.keys() & deltas.get(component, {}).keys():
            raise WeightFileError(f"lora.{file.name}: it changes {component}.{min(twice)} twice, once as {key}. Choose another file.")
        deltas.setdefault(component, {}).update(found)
    if not deltas:
        raise WeightFileError(_nothing_matched(file, list(content.tensors), family))
    return Lora(file.name, deltas, applied, len(content.tensors), tuple(unmatched), words)


def _read_settings(
    file: WeightFile, metadata: Mapping[str, str], components: Iterable[str]
) -> tuple[dict[str, PeftSettings], tuple[str, ...]]:
    """What peft says of each component, and the only component that its file changes, where it says so."""
    try:
        said = read_metadata(metadata)
        own = component_of(said)
        # peft's own settings are of one component and do not name it.
        found = {name: read_settings(said, "" if "lora_alpha" in said else name) for name in components}
    except FlawError as flaw:
        raise WeightFileError(f"lora.{file.name}: {flaw}") from None
    return found, (own,) if own else ()


def _with_alpha(parts: dict[str, Tensor], settings: PeftSettings, module: str) -> dict[str, Tensor]:
    if "alpha" in parts or "down" not in parts:
        return parts
    alpha = settings.alpha_of(module, parts["down"].shape[0])
    return parts if alpha is None else {**parts, "alpha": torch.tensor(alpha)}


def _compute(file: WeightFile, key: str, parts: dict[str, Tensor], target: Target, shapes: Shapes) -> dict[str, Delta]:
    """The change of each module that a name of the file stands for."""
    each = [shapes[name] for name in target.modules]
    rows = sum(shape[0] for shape in each)
    try:
        whole = build_delta(parts, (rows, *each[0][1:]))
        return _split(whole, target, [shape[0] for shape in each])
    except WeightFileError as error:
        raise WeightFileError(f"lora.{file.name}: {key} {error}") from error


def _split(whole: Delta, target: Target, rows: Sequence[int]) -> dict[str, Delta]:
    if target.is_swapped:
        half = rows[0] // 2
        form = None if whole.form is None else roll_rows(whole.form, half)
        whole = Delta(form, None if whole.bias is None else whole.bias.roll(half))
    if len(rows) == 1:
        return {target.modules[0]: whole}
    found: dict[str, Delta] = {}
    start = 0
    for name, count in zip(target.modules, rows, strict=True):
        stop = start + count
        form = None if whole.form is None else slice_rows(whole.form, start, stop)
        found[name] = Delta(form, None if whole.bias is None else whole.bias[start:stop])
        start = stop
    return found


def _bundled(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The embeddings that OneTrainer keeps in the LoRA they were trained with."""
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := BUNDLED.match(key):
            component = "text_encoder_2" if key.endswith((".clip_g", ".t5")) else "text_encoder"
            words.setdefault(found[1], {})[component] = torch.atleast_2d(tensor.float())
    return words


def _partly_applied(lora: Lora) -> str:
    shown = ", ".join(lora.unmatched[:3]) + (", ..." if len(lora.unmatched) > 3 else "")
    return f"lora.{lora.name}: {lora.applied_keys} of its {lora.total_keys} keys are applied; nothing in the model is called {shown}."


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    log.warning(message)


def _nothing_matched(file: WeightFile, keys: list[str], family: str) -> str:
    shown = ", ".join(keys[:3]) or "no tensors at all"
    made_for = identify(Path(file.path)).family
    whose = f" It was made for {to_title(made_for)}." if made_for else ""
    model = f" The model is {to_title(family)}." if family else ""
    return (
        f"lora.{file.name}: none of its {len(keys)} keys belongs to this model.{whose}{model} "
        f"It holds {shown}, ... Choose a LoRA of this family."
    )
