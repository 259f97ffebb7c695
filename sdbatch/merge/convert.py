"""Weight files in another form: pickle to safetensors, single file to folder and back, number formats, EMA, a baked VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdbatch.adapters.read import Tensors, read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import ConfigError, WeightFileError
from sdbatch.merge.checkpoint import DTYPES, OnProgress, counting
from sdbatch.merge.folder import write_folder
from sdbatch.merge.layout import SINGLE, TRAINING_PREFIXES, entries_of, extras_of, like_source
from sdbatch.merge.metadata import to_metadata
from sdbatch.merge.model import config_folder, read_likes
from sdbatch.merge.source import Source, open_source
from sdbatch.merge.weights import Weights, cast, plain, replaced
from sdbatch.merge.writer import committed, write_safetensors
from sdbatch.naming import Piece
from sdbatch.naming.file import EMA, ema_name, to_original
from sdbatch.weights.fit import describe
from sdbatch.weights.identify import identify_header
from sdbatch.weights.identity import Identity
from sdbatch.weights.reader import read_header

MODELS = ("checkpoint", "denoiser")
"""Kinds whose tensors are a model's; those of all others keep their own names."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be made of a file."""

    file: WeightFile
    out: Path
    """A name that ends in `.safetensors`, or that of a new folder."""
    dtype: str | None = None
    """A key of `DTYPES`; None: as it is."""
    ema: bool = False
    """Take the averaged weights in place of the trained ones."""
    prune: bool = False
    """Leave out everything that making images needs not."""
    vae: WeightFile | None = None
    """Bake in this VAE."""
    config: Path | None = None
    """Folder of the model's configs, for a new folder; None: those that ship with sdbatch."""

    @property
    def is_folder(self) -> bool:
        """Whether a diffusers folder is made."""
        return self.out.suffix != ".safetensors"


def convert(change: Change, on_progress: OnProgress) -> None:
    """Write the new file or folder.

    Raises:
        ConfigError: options that this kind of file cannot have.
        WeightFileError: files that do not fit, or a name that is taken.
    """
    with committed(change.out) as path:
        identity = identify_header(read_header(Path(change.file.path)))
        if identity.kind not in MODELS:
            _convert_other(change, identity, path, on_progress)
            return
        source = open_source(change.file)
        weights = _change(change, source, identity)
        sources = [file for file in (change.file, change.vae) if file is not None]
        metadata = to_metadata(change.out.stem, identity, source.metadata, _to_recipe(change), sources)
        if change.is_folder:
            write_folder(path, weights, source, change.config or _configs(source, identity), metadata, on_progress)
            return
        layout = like_source(source, weights)
        extras = _cast_extras(change, extras_of(source, lambda name: _keeps(change, name)))
        entries = entries_of(layout.files[SINGLE], weights, extras)
        write_safetensors(path, entries, metadata, counting([entries], on_progress))


def _change(change: Change, source: Source, identity: Identity) -> Weights:
    weights = plain(source)
    if change.ema or identity.pruning == "ema-only":
        weights = replaced(weights, _averaged(source, identity), "unet")
    if change.vae is not None:
        vae = open_source(change.vae)
        if "vae" not in vae.components:
            raise WeightFileError(f"vae={change.vae.name}: is {describe(identify_header(vae.header))}, not a VAE.")
        _refuse_other_vae(change, weights, plain(vae))
        weights = replaced(weights, plain(vae), "vae")
    return cast(weights, DTYPES[change.dtype]) if change.dtype else weights


def _refuse_other_vae(change: Change, weights: Weights, vae: Weights) -> None:
    assert change.vae is not None
    for name, like in weights.likes.items():
        found = vae.likes.get(name)
        if name.startswith("vae.") and (found is None or found.shape != like.shape):
            there = "missing" if found is None else str(list(found.shape))
            raise WeightFileError(
                f"vae={change.vae.name}: does not fit {change.file.name}: {name} is {there} there, {list(like.shape)} here."
            )


def _averaged(source: Source, identity: Identity) -> Weights:
    """The EMA weights of the UNet, which files keep under its original names without dots."""
    names = [name for name in source.tensors if name.startswith("unet.")]
    names = names or [name for name in read_likes(config_folder(identity)) if name.startswith("unet.")]
    found: Tensors = {}
    for own, piece in to_original(names, identity.family or "sd1").items():
        flat = ema_name(own)
        if flat not in source.raw:
            raise WeightFileError(f"{source.file.name}: ema=true asks for averaged weights, but {flat} is not in the file. Leave ema out.")
        found[piece.names[0]] = source.raw[flat]
    return _held(found)


def _held(tensors: Tensors) -> Weights:
    likes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return Weights(likes, tensors.__getitem__, lambda name: None)


def _keeps(change: Change, name: str) -> bool:
    if name.startswith(EMA):
        return not (change.prune or change.ema)
    return not (change.prune or name.startswith(TRAINING_PREFIXES))


def _cast_extras(change: Change, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not change.dtype:
        return dict(extras)
    return {name: tensor.to(DTYPES[change.dtype]) if tensor.is_floating_point() else tensor for name, tensor in extras.items()}


def _configs(source: Source, identity: Identity) -> Path:
    """A folder's own configs, else those that ship with sdbatch."""
    own = Path(source.file.path)
    return own if own.is_dir() else config_folder(identity)


def _convert_other(change: Change, identity: Identity, path: Path, on_progress: OnProgress) -> None:
    """A LoRA, VAE, embedding or other file: its own names, another container or number format."""
    if change.is_folder or change.ema or change.vae:
        raise ConfigError(f"{change.file.name} is {describe(identity)}: give out=NAME.safetensors, without ema and vae.")
    content = read_tensors(change.file)
    weights = _held({_other_name(name, identity): tensor for name, tensor in content.tensors.items()})
    if change.dtype:
        weights = cast(weights, DTYPES[change.dtype])
    entries = entries_of({name: Piece((name,)) for name in weights.likes}, weights, {})
    said = content.metadata or to_metadata(change.out.stem, identity, {}, _to_recipe(change), [change.file])
    write_safetensors(path, entries, said, counting([entries], on_progress))


def _other_name(name: str, identity: Identity) -> str:
    """A1111's embeddings keep their vectors in a nested dictionary, which safetensors has not."""
    return "emb_params" if identity.kind == "embedding" and name.startswith("string_to_param.") else name


def _to_recipe(change: Change) -> dict[str, object]:
    asked: dict[str, object] = {"file": change.file, "dtype": change.dtype, "ema": change.ema, "prune": change.prune, "vae": change.vae}
    return {key: value for key, value in asked.items() if value}
