"""The files that weights are written as: one single file in a family's original names, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sdbatch.adapters.piece import join
from sdbatch.merge.source import Source
from sdbatch.merge.weights import Weights
from sdbatch.merge.writer import Entry
from sdbatch.naming import Piece
from sdbatch.naming.file import EMA, to_original
from sdbatch.weights.identify import identify_header

SINGLE = ""
"""The only file of a single-file layout, in the table of files."""

FOLDER_FILES = {"unet": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""Names of the weight files in a diffusers folder; text encoders have `model`."""

TRAINING_PREFIXES = (EMA, "optimizer", "lr_scheduler", "loops.", "callbacks.")
"""What only training needs. Averaged weights (EMA) of before a merge would be wrong after it."""


class Layout(NamedTuple):
    """Which pieces go into which file."""

    files: dict[str, dict[str, Piece]]
    """Path in the folder (or SINGLE) -> name in the file -> what it is."""


def like_source(source: Source, weights: Weights) -> Layout:
    """A single file: with the source's own names where it is one, else with those of its family."""
    if source.header.format == "folder":
        return Layout({SINGLE: to_original(weights.likes, family_of(source))})
    kept = {own: piece for own, piece in source.pieces.items() if all(name in weights.likes for name in piece.names)}
    covered = {name for piece in kept.values() for name in piece.names}
    added = [name for name in weights.likes if name not in covered]
    return Layout({SINGLE: {**kept, **to_original(added, family_of(source))}})


def family_of(source: Source) -> str:
    """The family whose original names suit the components: OpenCLIP's activation tells SD 2.x from SD 1.x."""
    if "transformer" in source.components:
        return "flux"
    if "text_encoder_2" in source.components:
        return "sdxl"
    config: Any = source.header.values.get("text_encoder.config") or {}
    if "hidden_act" in config:
        return "sd2" if config["hidden_act"] == "gelu" else "sd1"
    return identify_header(source.header).family or "sd1"


def extras_of(source: Source, keeps: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors of a single file that are no weights of its model, of those that are kept."""
    if source.header.format == "folder":
        return {}
    return {own: tensor for own, tensor in source.raw.items() if own not in source.pieces and keeps(own)}


def as_folder(weights: Weights) -> Layout:
    """A diffusers folder: one file per component, under diffusers' names."""
    files: dict[str, dict[str, Piece]] = {}
    for name in weights.likes:
        component, _, bare = name.partition(".")
        files.setdefault(f"{component}/{FOLDER_FILES.get(component, 'model')}.safetensors", {})[bare] = Piece((name,))
    return Layout(files)


def entries_of(pieces: Mapping[str, Piece], weights: Weights, extras: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What is written into one file."""
    found = {own: _entry(piece, weights) for own, piece in pieces.items()}
    return found | {own: _extra(tensor) for own, tensor in extras.items()}


def _entry(piece: Piece, weights: Weights) -> Entry:
    def done() -> None:
        for name in piece.names:
            weights.release(name)

    like = join(piece, [weights.likes[name] for name in piece.names])
    return Entry(like, lambda: join(piece, [weights.make(name) for name in piece.names]), done)


def _extra(tensor: Tensor) -> Entry:
    return Entry(tensor, lambda: tensor, lambda: None)
