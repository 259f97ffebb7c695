"""The models that a folder of configs describes, without their data: which tensors they have and of what shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.errors import WeightFileError
from sdbatch.naming.file import NAMINGS, to_pieces
from sdbatch.plan.files import find_config
from sdbatch.weights.identity import Identity

_FOLDERS = {"tiny": "tiny_diffusers"}
"""Family -> the folder of configs that ships with sdbatch, where it is not the family's name."""


def config_folder(identity: Identity) -> Path:
    """The configs that ship with sdbatch for such a checkpoint.

    Raises:
        WeightFileError: there are none for its family.
    """
    family, variant = identity.family or "", identity.variant or ""
    wanted = [f"{family}_{variant}", f"{family}_768" if variant == "768-v" else family, family]
    for name in [_FOLDERS.get(name, name) for name in wanted]:
        try:
            return find_config(name)
        except WeightFileError:
            continue
    raise WeightFileError(f"{identity.path.name}: no configs ship with sdbatch for {family or 'a model of its kind'}. Give config=FOLDER.")


def read_likes(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the model that a folder of configs describes, by common name, without data."""
    found: dict[str, Tensor] = {}
    for component in NAMINGS:
        path = folder / component / "config.json"
        if path.is_file():
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.update({f"{component}.{name}": tensor for name, tensor in _build(config).state_dict().items()})
    return {piece.names[0]: found[own] for own, piece in to_pieces(found.keys(), is_folder=True).items()}


def _build(config: dict[str, Any]) -> nn.Module:
    cls = config.get("_class_name") or config["architectures"][0]
    if cls not in _BUILDERS:
        raise WeightFileError(f"{cls}: no component of a family that sdbatch runs.")
    with torch.device("meta"):
        return _BUILDERS[cls](config)


def _diffusers(path: str, cls: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(config: Mapping[str, Any]) -> nn.Module:
        import importlib

        # One class each: the whole of diffusers takes seconds.
        return getattr(importlib.import_module(f"diffusers.models.{path}"), cls).from_config(config)

    return build


def _clip(projection: bool) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(config: Mapping[str, Any]) -> nn.Module:
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

        cls: Any = CLIPTextModelWithProjection if projection else CLIPTextModel
        return cls(CLIPTextConfig.from_dict(dict(config)))

    return build


def _t5(config: Mapping[str, Any]) -> nn.Module:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    build: Any = T5EncoderModel
    return build(T5Config.from_dict(dict(config)))


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": _diffusers("unets.unet_2d_condition", "UNet2DConditionModel"),
    "FluxTransformer2DModel": _diffusers("transformers.transformer_flux", "FluxTransformer2DModel"),
    "AutoencoderKL": _diffusers("autoencoders.autoencoder_kl", "AutoencoderKL"),
    "CLIPTextModel": _clip(projection=False),
    "CLIPTextModelWithProjection": _clip(projection=True),
    "T5EncoderModel": _t5,
}
