"""What a family of models is, in words that need no torch."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_TOKENS = 75
"""Words of a prompt that fit one pass of a CLIP text encoder, without its begin and end marks."""


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a family: a module with weights."""

    name: str
    """`unet`, `vae`, `text_encoder`: its key in recipes and LoRA files, and its folder in a diffusers layout."""
    library: str
    """`diffusers` or `transformers`."""
    cls: str
    """Class name in that library."""
    prefix: str
    """What its keys begin with in a single-file checkpoint."""


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture whose parts fit together."""

    name: str
    title: str
    """As people write it: `Stable Diffusion 1.x`."""
    components: tuple[Component, ...]
    config: str
    """Folder of weightless configs under `sdbatch/families/configs/`, for checkpoints that bring none."""
    latent_channels: int
    vae_scale: int
    """Pixels per latent cell; width and height must be multiples of it."""
    native_px: int
    """Width and height the family was trained at; smaller or larger works, less well."""
    context_width: int
    """Width of the text embeddings that the UNet attends to (768 for SD 1.x; the embedded tiny model has its own)."""
    chunk_tokens: int
    """Tokens of a prompt per pass of the text encoder; longer prompts take several."""
    max_clip_skip: int
    """The deepest clip_skip that leaves at least one layer."""
    samplers: tuple[str, ...]
    """Names from the sampler table that fit the family's parameterisation."""
    default_sampler: str

    def component(self, name: str) -> Component:
        """The component of that name."""
        return next(part for part in self.components if part.name == name)
