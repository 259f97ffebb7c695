"""What a user may write: every key with its type, unit and neutral value.

Mutable dataclasses, because OmegaConf merges overrides into them; the plan has its own frozen words (`sdbatch.cell`).
Hydra stores the root as `schema`, so each YAML and each override is checked on merge. A key made by `beside` never
changes an `image_id`; all others decide the image.
"""

import builtins
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from omegaconf import MISSING

from sdbatch.cell import SINGLE_PARTS, STACKS
from sdbatch.config.choice import Dtype, Engine, Fill, Format, OnOom, Resize, Template, Tracker
from sdbatch.config.field import beside
from sdbatch.config.weight import (
    CheckpointConf,
    ControlNetConf,
    EmbeddingConf,
    HypernetworkConf,
    ImageEncoderConf,
    IpAdapterConf,
    LoraConf,
    PartConf,
    UpscalerConf,
)

# ruff: noqa: RUF009 - `beside` makes a field, and each field is its own


@dataclass
class FamilyConf:
    """An architecture whose parts fit together."""

    name: str = "sd1"
    """A name of the family table: how prompts are encoded and images denoised."""
    config: str = MISSING
    """Folder of the weightless configs and the tokenizer, or the name of one that ships with sdbatch."""


@dataclass
class ModelConf:
    """A preset: family, base checkpoint and its good defaults."""

    name: str = beside("")
    trigger: str | None = beside(None)
    """The words it was trained with: a note for people, nothing is added to the prompt."""


@dataclass
class SamplerConf:
    """A sampler by the name users know."""

    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    """More options of its diffusers scheduler class."""


@dataclass
class TaskConf:
    """What is made, and of which pictures; which keys a task uses is in `conf/task/`."""

    name: str = "txt2img"
    image: str | None = None
    """The picture that denoising starts from."""
    strength: float | None = None
    """Share of the steps that are run on it: 0 leaves it as it is, 1 leaves little of it."""
    steps: int | None = None
    """Of the second pass, of which the strength runs its share; 0: as many as of the first."""
    scale: float | None = None
    """Size of the second pass over `width` x `height`, rounded down to what the family makes."""
    width: int | None = None
    """Of the second pass in pixels, in place of `scale`; what is too much of the other side is cut."""
    height: int | None = None
    upscaler: str | None = None
    """What enlarges between the passes: latent, latent_nearest, ..., lanczos, or a network of `models/upscale_models`."""
    resize: Resize | None = None
    mask: str | None = None
    """A picture that is white where the image is made anew, black where it is kept."""
    mask_blur: int | None = None
    """In pixels of the image that is made."""
    fill: Fill | None = None
    paste: bool | None = None
    """Put the picture's own pixels back outside of the mask, which the VAE alone does not keep."""


@dataclass
class MemoryConf:
    """Devices and number formats."""

    device: str = beside("auto")
    """`auto` (every CUDA device, or the CPU), `cpu`, `cuda`, or a list such as `cuda:0,cuda:2`."""
    dtype: Dtype = Dtype.auto
    threads: int | None = beside(None)
    """CPU threads a worker; unset: all cores shared evenly."""
    on_oom: OnOom = beside(OnOom.halve)


@dataclass
class OutputConf:
    """What a finished sweep leaves behind."""

    format: Format = beside(Format.files)
    """`files`: a PNG each; `parquet` or `webdataset`: packed in blocks by the workers, a dataset as it is, in `blocks/`."""
    grid: bool = beside(True)
    """Draw a comparison grid at the end of a sweep of up to `grid_limit` images."""
    grid_limit: int = beside(400)


@dataclass
class TrackingConf:
    """The projection into MLflow."""

    backend: Tracker = beside(Tracker.mlflow)
    uri: str | None = beside(None)
    """Unset: an SQLite file `mlflow.db` in `paths.outputs`. Any MLflow tracking URI works."""
    experiment: str = beside("sdbatch")


@dataclass
class PromptsConf:
    """A source of prompts: one axis with a value per prompt."""

    file: str | None = None
    """Text (one prompt a line), CSV, JSONL or Parquet (columns named as config keys)."""
    text: list[str] = field(default_factory=builtins.list)
    """Prompts written in place."""
    template: Template = Template.none
    """`all`: expand `{a|b}` and `__wildcard__` by the dynamicprompts library."""
    wildcards: str | None = None
    """Folder of wildcard files."""


@dataclass
class MatrixConf:
    """Axes in YAML, multiplied with each other and with the sweep of the command line."""

    product: dict[str, Any] = field(default_factory=dict)
    """Key path to its values: a list, or a Hydra sweep such as `range(0,64)`."""
    zip: dict[str, Any] = field(default_factory=dict)
    """Key paths whose lists advance together."""
    list: builtins.list[dict[str, Any]] = field(default_factory=builtins.list)
    """Explicit points: each item sets its keys together."""
    exclude: builtins.list[dict[str, Any]] = field(default_factory=builtins.list)
    """Cells whose keys equal all of an item are left out."""
    prompts: PromptsConf = field(default_factory=PromptsConf)
    draws: int | None = None
    """N random points of the whole matrix in place of all of it; `interval(a,b)` needs it."""
    draw_seed: int = 0
    """Seed of the draws: the same seed draws the same points."""


@dataclass
class PathsConf:
    """Where files are."""

    models: list[str] = field(default_factory=lambda: ["models"])
    """Model folders, first match wins; A1111 and ComfyUI roots work. What ships with sdbatch comes last."""
    outputs: str = "outputs"
    spool: str | None = None
    """Where a worker keeps the images of a block until it is committed; unset: the machine's temporary folder (TMPDIR). In a
    folder that all machines see, a lost machine too costs a batch."""


@dataclass
class Config:
    """A run."""

    model: ModelConf = beside(ModelConf)
    family: FamilyConf = field(default_factory=FamilyConf)
    checkpoint: CheckpointConf = field(default_factory=CheckpointConf)
    vae: PartConf = field(default_factory=PartConf)
    text_encoder: PartConf = field(default_factory=PartConf)
    text_encoder_2: PartConf = field(default_factory=PartConf)
    upscaler: UpscalerConf = field(default_factory=UpscalerConf)
    lora: dict[str, LoraConf] = field(default_factory=dict)
    embedding: dict[str, EmbeddingConf] = field(default_factory=dict)
    hypernetwork: dict[str, HypernetworkConf] = field(default_factory=dict)
    controlnet: dict[str, ControlNetConf] = field(default_factory=dict)
    ip_adapter: dict[str, IpAdapterConf] = field(default_factory=dict)
    image_encoder: dict[str, ImageEncoderConf] = field(default_factory=dict)
    sampler: SamplerConf = field(default_factory=SamplerConf)
    task: TaskConf = field(default_factory=TaskConf)
    memory: MemoryConf = field(default_factory=MemoryConf)
    output: OutputConf = beside(OutputConf)
    tracking: TrackingConf = beside(TrackingConf)
    matrix: MatrixConf = beside(MatrixConf)
    paths: PathsConf = beside(PathsConf)

    prompt: str = ""
    """What the picture shows; `(word:1.2)` gives a word more weight."""
    negative_prompt: str = ""
    """What it shall not show."""
    seed: int = 0
    """Below 2**32: torch's CPU generator ignores the higher bits."""
    steps: int = 20
    """Of the sampler."""
    guidance_scale: float = 7.0
    """Classifier-free guidance; 1 is none."""
    guidance_rescale: float = 0.0
    """How far a guided prediction is brought back to the spread of the unguided one: against overexposure, 0.7 for zero-SNR models."""
    width: int = 512
    """In pixels, a multiple of 8."""
    height: int = 512
    """In pixels, a multiple of 8."""
    clip_skip: int = 1
    """A1111's counting: 1 is the last layer of the text encoder."""
    batch_size: int | str = beside("auto")
    """Images denoised together, or `auto`."""
    name: str | None = beside(None)
    """Name of the sweep; unset: the job's name, or the model's."""
    out: str | None = beside(None)
    """The sweep's folder; unset: `outputs/<name>_<hash of what is fixed and which keys vary>`."""
    engine: Engine = Engine.diffusers


FILE_GROUPS = ("checkpoint", *SINGLE_PARTS, *STACKS)
"""Groups whose options are files of the models folder."""


def identity_defaults(node: type = Config, prefix: str = "") -> dict[str, Any]:
    """Key path -> neutral value of every plain key that decides the image; stack items as `lora.*.weight`."""
    found: dict[str, Any] = {}
    hints = get_type_hints(node)
    for item in fields(node):
        if item.metadata.get("identity", True) is False:
            continue
        path = f"{prefix}{item.name}"
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found.update(identity_defaults(hint, f"{path}."))
        elif item.name in STACKS:
            found.update(identity_defaults(hint.__args__[1], f"{path}.*."))
        else:
            default = item.default_factory() if callable(item.default_factory) else item.default
            found[path] = default.value if isinstance(default, Enum) else default
    return found
