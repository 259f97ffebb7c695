"""CLIP image encoders: what an IP-Adapter knows of a picture.

Shapes: C 3 channels, S side of the square that the encoder sees, E width of the summary, P patches and one more, D their width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from sdbatch.adapters.module import build_module
from sdbatch.adapters.picture import lay_on_white, read_upright
from sdbatch.adapters.read import Tensors, read_folder, read_json, read_tensors
from sdbatch.cell import ImagePrompt, WeightFile
from sdbatch.errors import WeightFileError

REMEMBERED = 64
"""Pictures of which an encoder keeps what it said: 1.3 MB each of a ViT-H in float32."""

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Of CLIP's training pictures: every CLIP image encoder wants its input shifted and scaled by these."""

KNOWN: dict[tuple[int, int], dict[str, Any]] = {
    (1024, 24): {"num_attention_heads": 16, "hidden_act": "quick_gelu"},  # OpenAI's ViT-L/14
    (1280, 32): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-H/14
    (1664, 48): {"num_attention_heads": 16, "hidden_act": "gelu"},  # ViT-bigG/14
}
"""(width, layers) -> what the shapes of a single file do not tell."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an encoder says of one picture."""

    summary_1E: Tensor
    patches_1PD: Tensor
    """Of its last layer but one."""


class ImageEncoder:
    """A CLIP image encoder that looks at each picture once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def see(self, prompt: ImagePrompt) -> Seen:
        """What it says of a picture. Raises: CellError when the file is no picture."""
        return self._recall(prompt.image_sha256, prompt.image)

    def see_nothing(self) -> Seen:
        """What stands in for a picture where there is none: a summary of zeros, the patches of an input of zeros."""
        seen = self._recall("", None)
        return Seen(torch.zeros_like(seen.summary_1E), seen.patches_1PD)

    def forget(self) -> None:
        """Look at every picture anew, as after a change of the weights' dtype."""
        self._seen.clear()

    def _recall(self, key: str, image: str | None) -> Seen:
        if key not in self._seen:
            self._seen[key] = self._look(image)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def _look(self, image: str | None) -> Seen:
        parameter = next(self.module.parameters())
        config: Any = self.module.config
        pixels = np.zeros((3, config.image_size, config.image_size), np.float32) if image is None else load_pixels(image, config.image_size)
        found: Any = self.module(torch.from_numpy(pixels)[None].to(parameter), output_hidden_states=True)
        return Seen(found.image_embeds, found.hidden_states[-2])


def load_pixels(path: str, side_px: int) -> npt.NDArray[np.float32]:
    """The middle of a picture as a CLIP image encoder wants it: [3, side, side].

    The shorter side is resized to `side_px` and the longer one cropped, which is what transformers' CLIPImageProcessor does.

    Raises:
        CellError: the file is no picture.
    """
    picture = lay_on_white(read_upright(path))
    width, height = picture.size
    shorter = min(width, height)
    # Rounded down, as there.
    width, height = (int(side_px * side / shorter) for side in (width, height))
    left, top = (width - side_px) // 2, (height - side_px) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side_px, top + side_px))
    shares = (np.asarray(resized).astype(np.float64) / 255).astype(np.float32)
    return np.ascontiguousarray(((shares - _MEAN) / _STD).transpose(2, 0, 1))


def load_image_encoder(file: WeightFile, dtype: torch.dtype) -> ImageEncoder:
    """A CLIP image encoder with its projection, from a single file or a transformers folder.

    Its settings come from the folder, or from a JSON beside the file, else from its shapes.

    Raises:
        WeightFileError: not such an encoder, incomplete, or of a size that is not known and without a JSON.
    """
    what, path = f"image_encoder.{file.name}", Path(file.path)
    tensors = read_folder(file, path) if path.is_dir() else read_tensors(file).tensors
    state = {key: tensor for key, tensor in tensors.items() if key.startswith(("vision_model.", "visual_projection."))}
    place = next((place for place in (path / "config.json", path.with_suffix(".json")) if place.is_file()), None)
    config = read_json(place, what) if place else _read_config(what, state)
    vision = CLIPVisionConfig.from_dict(config)
    return ImageEncoder(build_module(what, CLIPVisionModelWithProjection, vision, state, dtype))


def _read_config(what: str, state: Tensors) -> dict[str, Any]:
    """The settings that the shapes tell; of heads and activation what is known of encoders of this size."""
    try:
        patches, positions = (state[f"vision_model.embeddings.{name}.weight"] for name in ("patch_embedding", "position_embedding"))
        inner, projection = state["vision_model.encoder.layers.0.mlp.fc1.weight"], state["visual_projection.weight"]
    except KeyError as error:
        raise WeightFileError(f"{what}: it is no CLIP image encoder with a projection: {error.args[0]} is missing.") from error
    width, patch_px = patches.shape[0], patches.shape[-1]
    layers = len({key.split(".")[3] for key in state if key.startswith("vision_model.encoder.layers.")})
    if (width, layers) not in KNOWN:
        raise WeightFileError(
            f"{what}: an image encoder of {layers} layers, {width} wide, is not known, and there is no JSON with its settings beside it. "
            "Give its folder, with config.json."
        )
    return {
        **KNOWN[width, layers],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": inner.shape[0],
        "projection_dim": projection.shape[0],
        "patch_size": patch_px,
        "image_size": patch_px * round((positions.shape[0] - 1) ** 0.5),
    }
