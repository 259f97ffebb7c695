"""What a user may write: every key with its type, unit and neutral value.

Mutable dataclasses, because OmegaConf merges overrides into them; the plan has its own frozen words (`sdbatch.cell`).
Hydra stores the root as `schema`, so each YAML and each override is checked on merge. `IDENTITY` metadata says which keys
decide the image: a key marked False never changes an `image_id`.
"""

import builtins
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from omegaconf import MISSING

from sdbatch.cell import SINGLE_PARTS, STACKS

# ruff: noqa: RUF009 - `beside` makes a field, and each field is its own


class Preprocessor(Enum):
    """What is done to a control image before the ControlNet sees it."""

    none = "none"
    canny = "canny"


class Dtype(Enum):
    """Number format of the weights in memory."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Prediction(Enum):
    """What the network was trained to predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


class OnOom(Enum):
    """What to do when a batch does not fit: halve it (and record it), or fail its cells."""

    halve = "halve"
    fail = "fail"


class Format(Enum):
    """How images are written."""

    files = "files"
    parquet = "parquet"
    webdataset = "webdataset"


class Tracker(Enum):
    """Where rows are projected to."""

    mlflow = "mlflow"
    none = "none"


class Template(Enum):
    """How a prompt line is read: as it is, or as a dynamicprompts template with all of its variants."""

    none = "none"
    all = "all"


class Resize(Enum):
    """How a source picture is brought to the image's size: its shape changes, its edges are cut, or drawn out to fill the rest."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class Fill(Enum):
    """What inpainting starts from inside the mask: the picture, noise in its place, or nothing. A1111's masked content."""

    original = "original"
    noise = "noise"
    nothing = "nothing"


class Engine(Enum):
    """What makes the images: diffusers, or test patterns to rehearse a job without weights or a GPU."""

    diffusers = "diffusers"
    rehearsal = "rehearsal"


def beside(default: Any) -> Any:
    """A field that says how or where, not what: it does not change the image, so it is not part of its identity."""
    if callable(default):
        return field(default_factory=default, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})


@dataclass
class PresetConf:
    """What a YAML of `conf/` knows of a file that users download themselves: its names, and where it comes from."""

    name: str = beside(MISSING)
    """The option's own name."""
    known: list[str] = beside(builtins.list)
    """File names it is known by, `*` for any text; the first that is in the models folders is used. `sdbatch pull` writes the first."""
    source: str | None = beside(None)
    """The page that tells about it and offers the download."""
    repo: str | None = beside(None)
    """Where `sdbatch pull` finds it on the Hugging Face Hub: `owner/name/path/of/file`. Unset: only the page offers it."""
    revision: str | None = beside(None)
    """Commit, tag or branch; unset: the newest."""
    sha256: str | None = beside(None)
    """SHA-256 of the file as published, or its first 10 digits (AutoV2) or more: `sdbatch pull` keeps no other."""


@dataclass
class FileConf:
    """What every option that is a weight file may say beside its name. `file` says what is used; these say where it comes from."""

    repo: str | None = beside(None)
    """In place of a file: a repository of the Hugging Face Hub, `owner/name`, or a file of it, `owner/name/path/of/file`."""
    revision: str | None = beside(None)
    """Commit, tag or branch of the repository; unset: `main`."""
    sha256: str | None = beside(None)
    """The SHA-256 the file must have, or its first 10 digits (AutoV2) or more: any other is refused before it is loaded."""
    preset: PresetConf | None = beside(None)


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
class MergeConf:
    """Other checkpoints that the base weights, A, are merged with as they are loaded. Nothing is written."""

    b: str | None = None
    """The second checkpoint, B. Unset: nothing is merged."""
    c: str | None = None
    """The third checkpoint, C, which `add_difference`, `ties` and `dare` take differences to."""
    method: str = "weighted_sum"
    """`weighted_sum`, `add_difference`, `slerp`, `ties` or `dare`."""
    ratio: float = 0.5
    """0 is A, 1 is B; of `add_difference`: the multiplier. With `blocks`: of everything outside of the blocks."""
    blocks: Any = None
    """A ratio for each block of the UNet: a preset such as GRAD_V, or a list of 25 (SDXL: 19). Unset: the ratio everywhere."""
    density: float = 0.5
    """Share of the changes that `ties` and `dare` keep."""
    seed: int = 0
    """Of what `dare` drops."""


@dataclass
class CheckpointConf(FileConf):
    """The base weights."""

    file: str = MISSING
    """An option name, a file name in `models/checkpoints`, or a path."""
    merge: MergeConf = field(default_factory=MergeConf)
    prediction_type: Prediction | None = None
    """Unset: what the file's header or the family's config says."""
    zero_snr: bool | None = None
    """Whether its noise schedule ends in pure noise (zero terminal SNR); unset: what the file's header says."""
    ema: bool = False
    """Take the averaged weights that a full checkpoint keeps beside the trained ones."""


@dataclass
class VaeConf(FileConf):
    """The autoencoder."""

    file: str | None = None
    """Unset: the one baked into the checkpoint."""


@dataclass
class TextEncoderConf(FileConf):
    """The text encoder."""

    file: str | None = None
    """Unset: the one baked into the checkpoint."""


@dataclass
class TextEncoder2Conf(FileConf):
    """The second text encoder: SDXL's larger CLIP, or FLUX's T5."""

    file: str | None = None
    """Unset: the one baked into the checkpoint."""


@dataclass
class UpscalerConf(FileConf):
    """What enlarges the finished picture."""

    file: str | None = None
    """A network of `models/upscale_models`; unset: none, or Lanczos where `scale` is set."""
    scale: float | None = None
    """Final size over `width` x `height`; unset: the network's own factor. What it does not give, Lanczos does."""
    tile_px: int = 512
    """The network sees squares of this side, which fade into each other; 0: the picture as a whole."""


@dataclass
class LoraConf(FileConf):
    """One adapter of the stack."""

    file: str = MISSING
    weight: float = 1.0
    """Strength on the denoising network; 0 is none, 1 as trained."""
    text_encoder_weight: float | None = None
    """Strength on the text encoder; unset: as `weight`."""
    blocks: Any = None
    """A factor for each block: a preset such as MIDD or OUTALL, or a list of 17 (SDXL: 12, FLUX: 61). Unset: 1 everywhere."""
    strict: bool = beside(False)
    """Refuse the file when a part of it fits nothing in the model; unset, the log warns and the row counts its keys."""
    trigger: str | None = beside(None)
    """The words it was trained with: a note for people, nothing is added to the prompt."""


@dataclass
class EmbeddingConf(FileConf):
    """One textual-inversion embedding; its name in the prompt calls it."""

    file: str = MISSING


@dataclass
class HypernetworkConf(FileConf):
    """One hypernetwork of the stack: it changes what cross-attention reads."""

    file: str = MISSING
    weight: float = 1.0
    """0 is none, 1 as trained."""


@dataclass
class ControlNetConf(FileConf):
    """One ControlNet of the stack."""

    file: str = MISSING
    image: str = MISSING
    """The control image, or the picture to preprocess."""
    preprocessor: Preprocessor = Preprocessor.none
    weight: float = 1.0
    start: float = 0.0
    """Share of the steps at which it begins."""
    end: float = 1.0
    """Share of the steps at which it ends."""


@dataclass
class IpAdapterConf(FileConf):
    """One IP-Adapter of the stack: it makes a picture part of the prompt."""

    file: str = MISSING
    image: str = MISSING
    """The picture."""
    weight: float = 1.0
    """0 is none, 1 as trained."""
    start: float = 0.0
    """Share of the steps at which it begins."""
    end: float = 1.0
    """Share of the steps at which it ends."""


@dataclass
class ImageEncoderConf(FileConf):
    """A CLIP image encoder, through which IP-Adapters see. With none in the stack, the one that fits is taken by itself."""

    file: str = MISSING


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


@dataclass
class Config:
    """A run."""

    model: ModelConf = beside(ModelConf)
    family: FamilyConf = field(default_factory=FamilyConf)
    checkpoint: CheckpointConf = field(default_factory=CheckpointConf)
    vae: VaeConf = field(default_factory=VaeConf)
    text_encoder: TextEncoderConf = field(default_factory=TextEncoderConf)
    text_encoder_2: TextEncoder2Conf = field(default_factory=TextEncoder2Conf)
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
    negative_prompt: str = ""
    seed: int = 0
    """Below 2**32: torch's CPU generator ignores the higher bits."""
    steps: int = 20
    guidance_scale: float = 7.0
    """Classifier-free guidance; 1 is none."""
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
