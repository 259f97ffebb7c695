"""Random IP-Adapters under the names of their real files, the image encoders they were made for, and diffusers' own of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sdbatch.adapters.ip_adapter import list_layers
from sdbatch.cell import WeightFile
from sdbatch.pipeline.image_prompt import find_encoder
from tests.pipeline.models import TinyModel, save, shake

SUMMARY, HIDDEN, SIDE_PX = 24, 32, 28
"""Width of the encoder's summary, of its layers, and the side of what it sees."""
KINDS = ("plain", "plus", "full")

State = dict[str, dict[str, Tensor]]


def build_image_encoder(seed: int = 3, summary: int = SUMMARY, hidden: int = HIDDEN) -> Any:
    """A random image encoder of the real class."""
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=summary,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=7,
    )
    encoder = CLIPVisionModelWithProjection(config).eval()
    shake(encoder, seed)
    return encoder


def save_image_encoder(encoder: Any, path: Path) -> WeightFile:
    """A single file with its settings beside it."""
    file = save(encoder.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(encoder.config.to_dict()))
    return file


def build_ip_adapter(model: TinyModel, kind: str, seed: int = 4, summary: int = SUMMARY, hidden: int = HIDDEN) -> State:
    """A random IP-Adapter for a model: `image_proj` and `ip_adapter`, with the names that files have."""
    return build_for_unet(model.pipeline.unet, kind, seed, summary, hidden)


def build_for_unet(unet: Any, kind: str, seed: int = 4, summary: int = SUMMARY, hidden: int = HIDDEN) -> State:
    """The same for a UNet."""
    torch.manual_seed(seed)
    width = unet.config.cross_attention_dim
    attention: dict[str, Tensor] = {}
    for index, layer in enumerate(list_layers(unet)):
        for name in ("to_k_ip", "to_v_ip"):
            attention[f"{2 * index + 1}.{name}.weight"] = _matrix(layer.get_parameter("to_k.weight").shape[0], width)
    projection = {"plain": _plain(width, summary), "plus": _plus(width, hidden), "full": _full(width, hidden)}[kind]
    return {"image_proj": projection, "ip_adapter": attention}


def _matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) / columns**0.5


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.05 * torch.randn(width), f"{name}.bias": 0.05 * torch.randn(width)}


def _linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": _matrix(rows, columns), f"{name}.bias": 0.05 * torch.randn(rows)}


def _plain(width: int, summary: int) -> dict[str, Tensor]:
    return {**_linear("proj", 4 * width, summary), **_norm("norm", width)}


def _full(width: int, hidden: int) -> dict[str, Tensor]:
    return {**_linear("proj.0", hidden, hidden), **_linear("proj.2", width, hidden), **_norm("proj.3", width)}


def _plus(width: int, hidden: int, inner: int = 48, heads: int = 2, layers: int = 4) -> dict[str, Tensor]:
    found = {"latents": torch.randn(1, 6, inner), **_linear("proj_in", inner, hidden)}
    found |= {**_linear("proj_out", width, inner), **_norm("norm_out", width)}
    for index in range(layers):
        attention, feed = f"layers.{index}.0", f"layers.{index}.1"
        found |= {**_norm(f"{attention}.norm1", inner), **_norm(f"{attention}.norm2", inner), **_norm(f"{feed}.0", inner)}
        found[f"{attention}.to_q.weight"] = _matrix(64 * heads, inner)
        found[f"{attention}.to_kv.weight"] = _matrix(2 * 64 * heads, inner)
        found[f"{attention}.to_out.weight"] = _matrix(inner, 64 * heads)
        found |= {f"{feed}.1.weight": _matrix(4 * inner, inner), f"{feed}.3.weight": _matrix(inner, 4 * inner)}
    return found


def flatten(state: State) -> dict[str, Tensor]:
    """As a safetensors file has it."""
    return {f"{part}.{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}


def save_ip_adapter(state: State, path: Path) -> WeightFile:
    """A safetensors file, or a pickle of nested dictionaries."""
    if path.suffix == ".safetensors":
        return save(flatten(state), path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return WeightFile(path.stem, str(path), path.name)


@dataclass(frozen=True)
class Prepared:
    """Files for a recipe, and what diffusers is given in their place."""

    adapters: tuple[WeightFile, ...]
    encoder: WeightFile
    states: tuple[State, ...]
    module: Any

    def load_into(self, pipeline: Any, weights: Sequence[float]) -> None:
        """Have diffusers' own pipeline load them."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # the plain name wants torchvision

        pipeline.register_modules(image_encoder=self.module, feature_extractor=CLIPImageProcessorPil(size=SIDE_PX, crop_size=SIDE_PX))
        names = [f"{index}.safetensors" for index in range(len(self.states))]
        pipeline.load_ip_adapter(list(self.states), subfolder="", weight_name=names, image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(list(weights))


def prepare(model: TinyModel, kinds: Sequence[str], folder: Path) -> Prepared:
    """One IP-Adapter of each kind, and their image encoder."""
    encoder = build_image_encoder()
    states = tuple(build_ip_adapter(model, kind, seed) for seed, kind in enumerate(kinds))
    suffixes = (".safetensors", ".bin")
    files = tuple(
        save_ip_adapter(state, folder / f"{model.family}_{kind}{index}{suffixes[index % 2]}")
        for index, (kind, state) in enumerate(zip(kinds, states, strict=True))
    )
    prepared = Prepared(files, save_image_encoder(encoder, folder / "vision.safetensors"), states, encoder)
    recipe = model.recipe(ip_adapters=files, image_encoders=(prepared.encoder,))
    assert all(find_encoder(recipe, file) == prepared.encoder for file in files)
    return prepared


def open_picture(path: Path) -> Image.Image:
    """A picture as diffusers is given it."""
    with Image.open(path) as image:
        return image.convert("RGB")
