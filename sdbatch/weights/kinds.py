"""The kinds of weight files and the folders in which this ecosystem keeps them: one table, read top to bottom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One config group of weight files."""

    group: str
    """The config group, singular: `lora=style_a`."""
    folders: tuple[str, ...]
    """Folder names, in lower case, that hold it; the first is ours, the rest are other programs'."""


KINDS: tuple[Kind, ...] = (
    # group          ours                 ComfyUI, A1111, Forge, SD.Next
    Kind("checkpoint", ("checkpoints", "stable-diffusion", "diffusion_models", "unet", "diffusers")),
    Kind("lora", ("loras", "lora", "lycoris")),
    Kind("vae", ("vae",)),
    Kind("text_encoder", ("text_encoders", "clip", "text_encoder", "text-encoder")),
    Kind("controlnet", ("controlnet", "controlnets", "t2i_adapter")),
    Kind("embedding", ("embeddings",)),
    Kind("hypernetwork", ("hypernetworks",)),
    Kind("ip_adapter", ("ipadapter", "ip_adapter", "ip-adapter")),
    Kind("image_encoder", ("clip_vision", "image_encoders", "image_encoder")),
    Kind("upscaler", ("upscale_models", "esrgan", "realesrgan", "swinir", "dat", "ldsr")),
)

_BY_GROUP = {kind.group: kind for kind in KINDS}

GROUPS: dict[str, Kind] = {**_BY_GROUP, "text_encoder_2": _BY_GROUP["text_encoder"]}
"""Config group -> its kind. First and second text encoders lie in the same folders."""

WEIGHT_SUFFIXES = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"})
"""Names that may be weight files. What a file really is, its first bytes tell."""
