"""LoRAs merged into one LoRA: exactly, ranks side by side, or as near as a given rank allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdbatch.adapters.delta import Delta, Dense, Kronecker, LowRank, to_dense
from sdbatch.adapters.lora import match_lora
from sdbatch.adapters.read import Tensors, read_tensors
from sdbatch.cell import Strength, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.merge.checkpoint import DTYPES, OnProgress, counting
from sdbatch.merge.metadata import to_metadata
from sdbatch.merge.model import config_folder, read_likes
from sdbatch.merge.weights import Weights, adaptable_shapes
from sdbatch.merge.writer import Entry, committed, write_safetensors
from sdbatch.weights.fit import describe
from sdbatch.weights.identify import identify
from sdbatch.weights.identity import Identity

PREFIXES = {"unet": "lora_unet_", "transformer": "lora_transformer_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
"""What kohya puts before the modules of each component; a model with one text encoder has `lora_te_`."""


@dataclass(frozen=True, slots=True)
class LoraOrder:
    """A LoRA to be made of others."""

    loras: tuple[tuple[WeightFile, Strength], ...]
    out: Path
    rank: int | None = None
    """Rank of each module; None: the sum of the ranks, which is exact."""
    dtype: str | None = None
    """A key of DTYPES; None: float16, or the widest of the files'."""


def make_lora(order: LoraOrder, on_progress: OnProgress) -> None:
    """Write a LoRA that does what all of these do together.

    Raises:
        WeightFileError: LoRAs of different families, forms that no LoRA can hold, or a name that is taken.
    """
    with committed(order.out) as path:
        identities = [identify(Path(file.path)) for file, _ in order.loras]
        _refuse_strangers(order, identities)
        shapes = adaptable_shapes(_model(identities[0]))
        found = [(match_lora(file, read_tensors(file), shapes), strength) for file, strength in order.loras]
        tensors: Tensors = {}
        for component in shapes:
            parts = [(lora.deltas.get(component, {}), _strength(component, strength)) for lora, strength in found]
            prefix = "lora_te_" if component == "text_encoder" and "text_encoder_2" not in shapes else PREFIXES[component]
            for module in dict.fromkeys(name for deltas, _ in parts for name in deltas):
                deltas = [(item[module], strength) for item, strength in parts if module in item]
                name = prefix + module.replace(".", "_")
                tensors.update({f"{name}.{role}": tensor for role, tensor in _sum(name, deltas, order.rank).items()})
        dtype = DTYPES[order.dtype] if order.dtype else _widest(identities)
        entries = {name: _entry(tensor.to(dtype).contiguous()) for name, tensor in tensors.items()}
        write_safetensors(path, entries, _metadata(order, identities[0], tensors), counting([entries], on_progress))


def _model(identity: Identity) -> Weights:
    """The model that a LoRA was made for, without data."""
    likes = read_likes(config_folder(identity))
    return Weights(likes, likes.__getitem__, lambda name: None)


def _refuse_strangers(order: LoraOrder, identities: Sequence[Identity]) -> None:
    for (file, _), identity in zip(order.loras, identities, strict=True):
        first = identities[0]
        if identity.kind != "lora":
            raise WeightFileError(f"loras={file.name}: is {describe(identity)}, not a LoRA.")
        if identity.family != first.family or identity.family is None:
            one, other = order.loras[0][0].name, file.name
            raise WeightFileError(f"{one} and {other} cannot be merged: {one} is {describe(first)}, {other} is {describe(identity)}.")


def _strength(component: str, strength: Strength) -> float:
    return strength.text_encoder if component.startswith("text_encoder") else strength.model


def _sum(name: str, deltas: Sequence[tuple[Delta, float]], rank: int | None) -> dict[str, Tensor]:
    """The tensors of one module: what each file does there, times its strength, added up."""
    forms = [(delta.form, strength) for delta, strength in deltas if delta.form is not None]
    found: dict[str, Tensor] = {}
    if biases := [delta.bias.float() * strength for delta, strength in deltas if delta.bias is not None]:
        found["diff_b"] = torch.stack(biases).sum(0)
    if not forms:
        return found
    low = [(form, strength) for form, strength in forms if isinstance(form, LowRank)]
    if len(low) == len(forms) and (rank is None or sum(form.down.shape[0] for form, _ in low) <= rank):
        pair = _side_by_side(low)
    elif all(isinstance(form, LowRank | Dense | Kronecker) for form, _ in forms):
        matrix = _dense([(form, strength) for form, strength in forms if isinstance(form, LowRank | Dense | Kronecker)])
        if matrix.dim() == 1:
            return {**found, "diff": matrix}
        if rank is None:
            raise WeightFileError(f"{name} has full rank in one of the files, so that the exact sum is no LoRA. Give rank=32, or another.")
        pair = _reduce(matrix, rank)
    else:
        raise WeightFileError(f"{name} changes the weight in a way that depends on it (DoRA, OFT, GLoRA, IA3): bake it into a checkpoint.")
    down, up = pair
    return {**found, "lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(down.shape[0]))}


def _side_by_side(forms: Sequence[tuple[LowRank, float]]) -> tuple[Tensor, Tensor]:
    """One pair of factors whose product is the sum of the products."""
    down = torch.cat([form.down.float() for form, _ in forms])
    up = torch.cat([form.up.float().flatten(1) * strength for form, strength in forms], dim=1)
    return down, up.reshape(*up.shape, *(1,) * (down.dim() - 2))


def _dense(forms: Sequence[tuple[LowRank | Dense | Kronecker, float]]) -> Tensor:
    return torch.stack([to_dense(form, torch.empty(_shape(form), device="cpu")) * strength for form, strength in forms]).sum(0)


def _shape(form: LowRank | Dense | Kronecker) -> tuple[int, ...]:
    match form:
        case LowRank(down, up):
            return (up.shape[0], *down.shape[1:])
        case Dense(weight):
            return tuple(weight.shape)
        case Kronecker(first, second):
            return (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:])


def _reduce(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest pair of factors of a rank (Eckart and Young), the singular values shared between the two."""
    left, values, right = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    down = (root[:, None] * right[:kept]).reshape(kept, *matrix.shape[1:])
    up = left[:, :kept] * root
    return down, up.reshape(*up.shape, *(1,) * (matrix.dim() - 2))


def _widest(identities: Sequence[Identity]) -> torch.dtype:
    return torch.float32 if any(identity.dtype == "F32" for identity in identities) else torch.float16


def _entry(tensor: Tensor) -> Entry:
    return Entry(tensor, lambda: tensor, lambda: None)


def _metadata(order: LoraOrder, first: Identity, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    rank = max((tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_down.weight")), default=0)
    recipe = {"loras": tuple((file, strength.model, strength.text_encoder) for file, strength in order.loras), "rank": order.rank}
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    written = {key: value for key, value in recipe.items() if value}
    return {**kohya, **to_metadata(order.out.stem, first, first.metadata, written, [file for file, _ in order.loras])}
