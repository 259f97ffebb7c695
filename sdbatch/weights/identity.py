"""The words for what a weight file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdbatch.weights.lora_facts import LoraFacts

GROUP_OF_KIND: dict[str, str] = {
    "checkpoint": "checkpoint",
    "denoiser": "checkpoint",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "lora": "lora",
    "embedding": "embedding",
    "hypernetwork": "hypernetwork",
    "controlnet": "controlnet",
    "t2i_adapter": "controlnet",
    "ip_adapter": "ip_adapter",
    "image_encoder": "image_encoder",
    "upscaler": "upscaler",
}
"""Kind -> config group that takes it. Motion modules and style models have none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a weight file is. Everything stems from its header; nothing from its name or folder."""

    path: Path
    kind: str
    """A key of GROUP_OF_KIND, `motion_module`, `style_model`, or `unknown`. `denoiser`: a UNet or transformer alone."""
    format: str
    """`safetensors`, `pickle` or `folder`."""
    size: int
    """In bytes."""
    family: str | None = None
    """`sd1`, `sd2`, `sdxl`, `flux`, `sd3`, `tiny`, ...; None when the header does not tell: then compare the widths."""
    variant: str | None = None
    """Within the kind and family: `base`, `inpainting`, `refiner`, `768-v`, `dev`, `schnell`, `clip_l`, `esrgan`, ..."""
    parts: tuple[str, ...] = ()
    """Of a checkpoint: `unet` or `transformer`, `vae`, `text_encoder`, `text_encoder_2`, `ema`, ..."""
    pruning: str | None = None
    """Of a checkpoint: `full` (EMA weights beside the normal ones), `pruned` (one set), `ema-only` (under EMA's names)."""
    dtype: str = ""
    """Of most parameters, as safetensors writes it: `F16`."""
    parameters: int = 0
    """All numbers stored, EMA weights too."""
    cross_attention_width: int | None = None
    """Width of the text states that the UNet reads, or that the adapter was made for."""
    embedding_widths: tuple[int, ...] = ()
    """Token widths: of the text encoders inside, of those an adapter changes, or of an embedding's vectors."""
    embedding_vectors: int | None = None
    """How many tokens an embedding takes in the prompt."""
    latent_channels: int | None = None
    image_embedding_width: int | None = None
    """Of the summary that an image encoder gives of a picture; of an IP-Adapter that reads it: what it must be."""
    image_hidden_width: int | None = None
    """Of an image encoder's layers; of an IP-Adapter that reads every patch of the picture (plus, full): what it must be."""
    prediction_type: str | None = None
    """`epsilon`, `v_prediction`, `flow`; None when the header does not tell."""
    zero_snr: bool = False
    """Trained for a schedule that ends in pure noise (zero terminal signal-to-noise ratio)."""
    trigger_words: tuple[str, ...] = ()
    lora: LoraFacts | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The short entries of the header's metadata, cleaned for showing."""
    foreign: tuple[str, ...] = ()
    """Classes named by a pickle that torch does not load by itself."""

    @property
    def group(self) -> str | None:
        """The config group that takes this file: `lora` for `lora=NAME`; None when none does."""
        return GROUP_OF_KIND.get(self.kind)
