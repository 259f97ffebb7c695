"""The words every part of sdbatch shares: a weight file, a recipe, a cell and the picture made of it.

All of it is frozen and plain: no torch, no OmegaConf, no open files. A recipe decides which weights are in memory; a
cell is one image to make with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SEED_LIMIT = 2**32
"""Seeds are below this: torch's CPU generator ignores the higher bits, so seed 2**32 would repeat seed 0."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file (or diffusers folder) of weights, by content."""

    name: str
    """The option name a user types, such as `style_a`."""
    path: str
    """Absolute path on this machine."""
    sha256: str
    """SHA-256 of the content, 64 hex digits; of a folder: of its sorted file names and hashes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides which weights are in memory and how they are wired. Equal recipes share a pipeline."""

    family: str
    """A name of the family table, such as `sd1`."""
    config: str
    """Folder of the weightless configs and tokenizer (absolute path)."""
    checkpoint: WeightFile
    vae: WeightFile | None = None
    """None: the one baked into the checkpoint."""
    text_encoder: WeightFile | None = None
    """None: the one baked into the checkpoint."""
    loras: tuple[WeightFile, ...] = ()
    """The adapter stack in its order; the strengths are the cell's."""
    embeddings: tuple[WeightFile, ...] = ()
    """Textual-inversion embeddings; the name of the file is the word of the prompt that calls it."""
    controlnets: tuple[WeightFile, ...] = ()
    prediction_type: str | None = None
    """`epsilon`, `v_prediction`, or None for what the checkpoint's config says."""
    dtype: str = "auto"
    """`auto` (float32 on CPU, bfloat16 or float16 on CUDA), `float32`, `float16` or `bfloat16`."""
    engine: str = "diffusers"
    """`diffusers`, or `rehearsal`: test patterns in place of images, to try a job without weights or a GPU."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler as users know it, with the diffusers class that runs it."""

    name: str
    """Such as `dpmpp_2m_karras`."""
    label: str
    """As A1111 writes it: `DPM++ 2M`."""
    schedule: str
    """A1111's schedule type: `Automatic`, `Karras`, ..."""
    scheduler: str
    """Class name in diffusers."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the class, sorted by name."""


@dataclass(frozen=True, slots=True)
class Strength:
    """The strength of one adapter of the stack; 1 is as trained, 0 is none."""

    model: float = 1.0
    text_encoder: float = 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """What one ControlNet of the stack is given."""

    image: str
    """Absolute path of the control image or of the picture to preprocess."""
    image_sha256: str
    preprocessor: str = "none"
    """`none` takes the image as it is; `canny` draws its edges first."""
    weight: float = 1.0
    start: float = 0.0
    """Share of the steps at which it begins, 0 to 1."""
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One image to make."""

    image_id: str
    """32 hex digits: a hash of everything that changes the image, weight files by content."""
    recipe: Recipe
    prompt: str
    negative_prompt: str
    seed: int
    sampler: Sampler
    steps: int
    guidance_scale: float
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    clip_skip: int = 1
    """A1111's counting: 1 is the last layer of the text encoder, 2 the one before."""
    strengths: tuple[Strength, ...] = ()
    """One per LoRA of the recipe."""
    controls: tuple[Control, ...] = ()
    """One per ControlNet of the recipe."""
    axes: tuple[tuple[str, Any], ...] = ()
    """The sweep's axes and this cell's values, as typed: `(("lora.style_a.weight", 0.5), ("seed", 3))`."""
    config: str = "{}"
    """The cell's whole resolved configuration as canonical JSON: what `sdbatch replay` runs again."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What an engine hands back for one cell."""

    cell: Cell
    pixels: npt.NDArray[np.uint8]
    """[height, width, 3], RGB."""
    fault: str | None = None
    """None when good; `nan` (not finite, after the float32 retry) or `flat` (one colour) otherwise."""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """How it was made: batch_size, batch_slot, device, dtype, threads, encode_s, denoise_s, decode_s, retried_fp32,
    applied_keys ({lora name: (applied, total)}), versions."""
