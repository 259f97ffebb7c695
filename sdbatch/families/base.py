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
    prefixes: tuple[str, ...]
    """What its keys begin with in a single-file checkpoint; the first that is found counts. An empty one stands for keys
    that no other component claims: a file of the denoiser alone."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One text encoder of a family, and what of its answer the denoiser gets."""

    component: str
    """`text_encoder` or `text_encoder_2`."""
    tokenizer: str
    """Its tokenizer's folder in a diffusers layout."""
    kind: str = "clip"
    """`clip`: chunks of 75 tokens; `t5`: the whole prompt at once."""
    layer: int = 1
    """The layer that is taken, counted from the last, unless clip_skip asks for a deeper one."""
    left_out: int = 0
    """Last layers of the original that the config leaves out; clip_skip counts them."""
    final_norm: bool = True
    """Whether the layer goes through the encoder's last normalisation."""
    context: bool = True
    """Whether its tokens are what the denoiser attends to."""
    pooled: bool = False
    """Whether its summary of the whole prompt is given to the denoiser too."""


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture whose parts fit together."""

    name: str
    title: str
    """As people write it: `Stable Diffusion 1.x`."""
    components: tuple[Component, ...]
    encoders: tuple[Encoder, ...]
    config: str
    """Folder of weightless configs under `sdbatch/families/configs/`, for checkpoints that bring none."""
    latent_channels: int
    size_multiple_px: int
    """Width and height must be multiples of it."""
    native_px: int
    """Width and height the family was trained at; smaller or larger works, less well."""
    context_width: int
    """Width of the text embeddings that the denoiser attends to (768 for SD 1.x; the embedded tiny model has its own)."""
    max_clip_skip: int
    """The deepest clip_skip that leaves at least one layer; 1 where no layer can be chosen."""
    samplers: tuple[str, ...]
    """Names from the sampler table that fit the family's parameterisation."""
    default_sampler: str
    distilled_guidance: bool = False
    """guidance_scale is an input of the network: one pass a step, and no negative prompt."""

    @property
    def denoiser(self) -> str:
        """Name of the component that denoises: `unet` or `transformer`."""
        return self.components[0].name

    def skipped_steps(self, steps: int, strength: float) -> int:
        """How many steps, the noisiest first, a picture's denoising leaves out at a strength from 0 to 1.

        Source: `get_timesteps` of diffusers' img2img pipelines, which round differently by family.
        """
        if self.distilled_guidance:
            return int(steps - steps * strength)
        return steps - int(steps * strength)

    def enlarged_px(self, size_px: tuple[int, int], scale: float) -> tuple[int, int]:
        """A size (width, height) times a factor, rounded down to what the family makes."""
        width, height = (int(round(side * scale, 3)) // self.size_multiple_px * self.size_multiple_px for side in size_px)
        return width, height

    def component(self, name: str) -> Component:
        """The component of that name."""
        return next(part for part in self.components if part.name == name)
