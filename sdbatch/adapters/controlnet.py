"""ControlNets: a copy of the UNet's first half that reads a picture and tells the UNet where things are.

Each image of a batch has its own picture, weight and window of steps. A weight of 0 adds exactly nothing.

Shapes: B batch, N what the UNet is given (2B with guidance: all unconditional ones first), C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from torch import Tensor, nn

from sdbatch.adapters.canny import draw_edges
from sdbatch.adapters.module import build_module
from sdbatch.adapters.picture import read_upright
from sdbatch.adapters.piece import read_component
from sdbatch.adapters.read import Tensors, read_folder, read_json, read_tensors
from sdbatch.adapters.window import weights_at
from sdbatch.cell import Control, WeightFile
from sdbatch.errors import ConfigError, WeightFileError, did_you_mean
from sdbatch.naming import names_of

PREPROCESSORS: dict[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    "none": lambda pixels: pixels,
    "canny": draw_edges,
}
"""What may be done to a picture before a ControlNet sees it."""

_PREFIX = "control_model."
"""What the names of an original file begin with, where it holds more than the ControlNet."""

_SHARED_SETTINGS = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
    "upcast_attention",
    "resnet_time_scale_shift",
    "addition_embed_type",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "flip_sin_to_cos",
    "freq_shift",
    "mid_block_type",
)
"""Settings that a ControlNet takes over from the UNet it was copied from."""


def load_controlnet(file: WeightFile, config_folder: Path, unet_config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A ControlNet from a single file (original or diffusers keys) or a diffusers folder.

    Its settings come from a JSON beside the file, else from `<config folder>/controlnet`, else from the UNet's.

    Raises:
        WeightFileError: not a ControlNet, or one for another family.
    """
    state = _read_state(file)
    config = _find_config(file, config_folder) or _config_from_unet(unet_config, state)
    converted = read_component(state, names_of("controlnet", state))
    if "controlnet_mid_block.weight" not in converted:
        raise WeightFileError(f"controlnet.{file.name}: it is no ControlNet; it holds {', '.join(list(state)[:3])}, ...")
    width = next((tensor.shape[-1] for key, tensor in converted.items() if key.endswith("attn2.to_k.weight")), None)
    if width is not None and width != unet_config["cross_attention_dim"]:
        raise WeightFileError(
            f"controlnet.{file.name}: made for {width}-wide text embeddings, the model has {unet_config['cross_attention_dim']}. "
            "Choose a ControlNet of the model's family."
        )
    return build_module(f"controlnet.{file.name}", ControlNetModel.from_config, config, converted, dtype)


def _read_state(file: WeightFile) -> Tensors:
    path = Path(file.path)
    if path.is_dir():
        return read_folder(file, path)
    tensors = read_tensors(file).tensors
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)} or tensors


def _find_config(file: WeightFile, config_folder: Path) -> dict[str, Any] | None:
    path = Path(file.path)
    places = (path / "config.json", path.with_suffix(".json"), config_folder / "controlnet" / "config.json")
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else read_json(found, f"controlnet.{file.name}")


def _config_from_unet(unet_config: Mapping[str, Any], state: Tensors) -> dict[str, Any]:
    config = {name: unet_config[name] for name in _SHARED_SETTINGS if name in unet_config}
    hints = [key for key, tensor in state.items() if tensor.dim() == 4 and ("cond_embedding" in key or "input_hint_block" in key)]
    widths = [state[key].shape[0] for key in sorted(hints, key=_layer_number)]
    if len(widths) > 2:
        # the layers go w0, w0, w1, w1, w2, ... and end in the UNet's own width
        config["conditioning_embedding_out_channels"] = tuple(widths[:-1:2])
    return config


def _layer_number(key: str) -> tuple[int, int]:
    stage = 0 if "conv_in" in key else 2 if "conv_out" in key else 1
    return stage, next((int(part) for part in reversed(key.split(".")) if part.isdigit()), 0)


@dataclass(frozen=True, slots=True)
class ControlNetBatch:
    """One ControlNet and what it does to each image of a batch."""

    net: nn.Module
    picture_BCHW: Tensor
    weights: tuple[float, ...]
    windows: tuple[tuple[float, float], ...]
    """(start, end) of each image, as shares of all steps."""

    def scales(self, step: int, steps: int) -> tuple[float, ...]:
        """The weight of each image at a step: 0 outside its window."""
        return weights_at((step, steps), self.weights, self.windows)


def add_controls(
    batches: Sequence[ControlNetBatch],
    when: tuple[int, int],
    latents_NCHW: Tensor,
    timestep: Tensor,
    embeds_NTC: Tensor,
    added: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What the ControlNets give the UNet at a step: keyword arguments of its call, none when no net is active.

    Args:
        batches: The nets, each with its pictures.
        when: (step, steps).
        latents_NCHW: What the UNet is given.
        timestep: The same as the UNet's.
        embeds_NTC: The text embeddings.
        added: What else the UNet is told, in SDXL: the prompt's summary and the picture's size.
    """
    down: list[Tensor] | None = None
    middle: Tensor | None = None
    for batch in batches:
        scales = batch.scales(*when)
        if not any(scales):
            continue
        repeat = latents_NCHW.shape[0] // len(scales)
        scale = torch.tensor(scales * repeat).to(latents_NCHW, non_blocking=True).view(-1, 1, 1, 1)
        picture = batch.picture_BCHW.repeat(repeat, 1, 1, 1)
        found, centre = batch.net(
            latents_NCHW,
            timestep,
            encoder_hidden_states=embeds_NTC,
            controlnet_cond=picture,
            conditioning_scale=scale,
            added_cond_kwargs=dict(added),
            return_dict=False,
        )
        down = list(found) if down is None else [a + b for a, b in zip(down, found, strict=True)]
        middle = centre if middle is None else middle + centre
    return {} if down is None else {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def load_picture(control: Control, width: int, height: int) -> Tensor:
    """The picture a ControlNet is given: [3, height, width], 0 to 1.

    Raises:
        ConfigError: no such preprocessor.
        CellError: the file is no picture.
    """
    if control.preprocessor not in PREPROCESSORS:
        raise ConfigError(f"preprocessor: there is no {control.preprocessor!r}. {did_you_mean(control.preprocessor, PREPROCESSORS)}")
    # What is transparent keeps its colour, mostly black: maps of poses and edges are drawn on that.
    picture = read_upright(control.image).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    pixels = PREPROCESSORS[control.preprocessor](np.asarray(picture))
    return torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1).contiguous()
