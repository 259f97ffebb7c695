"""The words every part of sdbatch shares: a weight file, a recipe, a cell and the picture made of it.

All of it is frozen and plain: no torch, no OmegaConf, no open files. A recipe decides which weights are in memory; a
cell is one image to make with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # the catalogue of weight files reads these words too, and is to cost milliseconds
    import numpy as np
    import numpy.typing as npt

SEED_LIMIT = 2**32
"""Seeds are below this: torch's CPU generator ignores the higher bits, so seed 2**32 would repeat seed 0."""


STACKS = {
    "lora": "loras",
    "embedding": "embeddings",
    "hypernetwork": "hypernetworks",
    "controlnet": "controlnets",
    "ip_adapter": "ip_adapters",
    "image_encoder": "image_encoders",
}
"""Config group of each ordered set of adapters -> the field of a recipe that holds its files."""

SINGLE_PARTS = ("vae", "text_encoder", "text_encoder_2", "upscaler")
"""Config groups, and fields of a recipe, of single files that replace a part of the checkpoint or come after it."""

LOCAL_FIELDS = ("config", "strict_loras")
"""Fields of a recipe that say where something is on this machine, or how it is checked, not what it is."""


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
class Merge:
    """How a recipe's checkpoint, A, is merged with others when it is loaded; nothing is written."""

    b: WeightFile
    c: WeightFile | None = None
    method: str = "weighted_sum"
    """A key of `sdbatch.merge.table.METHODS`."""
    ratio: float = 0.5
    """0 is A, 1 is B; of a difference: its multiplier. With block weights: of everything outside of the blocks."""
    blocks: tuple[float, ...] = ()
    """A ratio per block of the UNet; empty: the ratio everywhere."""
    density: float = 0.5
    """Share of the changes that TIES and DARE keep."""
    seed: int = 0
    """Of what DARE drops."""

    def name(self, first: str) -> str:
        """What people call such a merge: `a*0.75+b*0.25`, `a+(b-c)*0.5`, `ties(a, b, c, 0.5)`."""
        third = self.c.name if self.c else ""
        match self.method:
            case "weighted_sum":
                name = f"{first}*{1 - self.ratio:.6g}+{self.b.name}*{self.ratio:.6g}"
            case "add_difference":
                name = f"{first}+({self.b.name}-{third})*{self.ratio:.6g}"
            case _:
                name = f"{self.method}({', '.join(filter(None, [first, self.b.name, third]))}, {self.ratio:.6g})"
        return f"{name} by blocks" if self.blocks else name


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
    text_encoder_2: WeightFile | None = None
    """SDXL's second CLIP or FLUX's T5; None: the one baked into the checkpoint."""
    upscaler: WeightFile | None = None
    """The network that enlarges the finished picture; None: none, or Lanczos."""
    hires_upscaler: WeightFile | None = None
    """The network that enlarges between the two passes of a hires fix; None: none is needed."""
    loras: tuple[WeightFile, ...] = ()
    """The adapter stack in its order; the strengths are the cell's."""
    embeddings: tuple[WeightFile, ...] = ()
    """Textual-inversion embeddings; the name of the file is the word of the prompt that calls it."""
    hypernetworks: tuple[WeightFile, ...] = ()
    controlnets: tuple[WeightFile, ...] = ()
    ip_adapters: tuple[WeightFile, ...] = ()
    image_encoders: tuple[WeightFile, ...] = ()
    """What the IP-Adapters see their pictures through; each takes the one that gives what it reads."""
    strict_loras: tuple[str, ...] = ()
    """Names of the LoRAs that must be applied as a whole."""
    prediction_type: str | None = None
    """`epsilon`, `v_prediction`, or None for what the checkpoint's header or config says."""
    zero_snr: bool | None = None
    """A schedule that ends in pure noise (zero terminal SNR), or None for what the checkpoint's header or config says."""
    ema: bool = False
    """Take the averaged weights that a full checkpoint keeps beside the trained ones."""
    dtype: str = "auto"
    """`auto` (float32 on CPU, bfloat16 or float16 on CUDA), `float32`, `float16` or `bfloat16`."""
    merge: Merge | None = None
    """None: the checkpoint as it is."""
    engine: str = "diffusers"
    """`diffusers`, or `rehearsal`: test patterns in place of images, to try a job without weights or a GPU."""

    @property
    def model_name(self) -> str:
        """What people call the base weights, merged or not."""
        return self.merge.name(self.checkpoint.name) if self.merge else self.checkpoint.name

    def stack(self, group: str) -> tuple[WeightFile, ...]:
        """The files of a stack in its order."""
        files: tuple[WeightFile, ...] = getattr(self, STACKS[group])
        return files

    def part(self, component: str) -> WeightFile | None:
        """The file that replaces a component of the checkpoint, or None."""
        file: WeightFile | None = getattr(self, component) if component in SINGLE_PARTS else None
        return file

    def parts(self) -> Iterator[tuple[str, str, WeightFile]]:
        """(key path, group, file) of everything that is added to the checkpoint, merged into it or replaces a part of it."""
        for letter, other in (("b", self.merge.b), ("c", self.merge.c)) if self.merge else ():
            if other is not None:
                yield f"checkpoint.merge.{letter}", "checkpoint", other
        for group in SINGLE_PARTS:
            if (file := getattr(self, group)) is not None:
                yield group, group, file
        if self.hires_upscaler is not None:
            yield "task.upscaler", "upscaler", self.hires_upscaler
        for group in STACKS:
            for file in self.stack(group):
                yield f"{group}.{file.name}", group, file


def content_of(value: Any) -> Any:
    """A frozen word as plain JSON values that say what it is by content: files by name and SHA-256, never by path.

    Fields at their default are left out, so that a field of a later version does not change what older ones say.
    """
    if isinstance(value, WeightFile):
        return {"name": value.name, "sha256": value.sha256}
    if isinstance(value, tuple):
        return [content_of(item) for item in cast("tuple[Any, ...]", value)]
    if not is_dataclass(value):
        return value
    given = {item.name: getattr(value, item.name) for item in fields(value) if item.name not in LOCAL_FIELDS}
    return {item.name: content_of(given[item.name]) for item in fields(value) if item.name in given and given[item.name] != item.default}


def recipe_from(record: Mapping[str, Any]) -> Recipe:
    """The recipe that `dataclasses.asdict` made plain and JSON kept. Raises TypeError for what is no such record."""
    return Recipe(**{name: _from_plain(value) for name, value in record.items()})


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_plain(item) for item in cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    record = {name: _from_plain(item) for name, item in cast("dict[str, Any]", value).items()}
    return WeightFile(**record) if "sha256" in record else Merge(**record)


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
    blocks: str = ""
    """A factor for each block, as a preset or numbers (`families.lora_blocks`); empty: 1 everywhere."""


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
class ImagePrompt:
    """What one IP-Adapter of the stack is shown."""

    image: str
    """Absolute path of the picture."""
    image_sha256: str
    weight: float = 1.0
    """0 is none, 1 as trained."""
    start: float = 0.0
    """Share of the steps at which it begins, 0 to 1."""
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class Mask:
    """Which part of a source picture inpainting makes anew; it keeps the rest."""

    image: str
    """Absolute path of the mask; white is made anew."""
    image_sha256: str
    blur_px: int = 0
    fill: str = "original"
    """What denoising starts from inside the mask: `original`, `noise` or `nothing`."""
    paste: bool = True
    """Whether the picture's own pixels are put back outside of the mask."""


@dataclass(frozen=True, slots=True)
class Source:
    """The picture that img2img and inpainting start from."""

    image: str
    """Absolute path."""
    image_sha256: str
    strength: float
    """Share of the steps that are run, the last ones: 0 leaves the picture as it is, 1 is all of them."""
    resize: str = "stretch"
    """How it is brought to the image's size: `stretch`, `crop` or `pad`."""
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Enlarger:
    """How the picture of one pass becomes as large as the next one's."""

    name: str
    """Such as `latent_nearest`."""
    label: str
    """As A1111 writes it: `Latent (nearest)`."""
    interpolation: str = ""
    """Torch's, of the latents; empty: pixels are enlarged, by the recipe's network or Lanczos."""
    antialias: bool = False


@dataclass(frozen=True, slots=True)
class Hires:
    """The second pass of a hires fix: img2img on the enlarged picture of the first."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    strength: float
    """As of a `Source`."""
    steps: int
    """Of which the strength runs its share."""
    enlarger: Enlarger
    scale: float | None = None
    """What was asked for; None: the size itself."""


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
    guidance_rescale: float = 0.0
    """Share of the guided prediction that is brought back to the spread of the one that knows the prompt; 0 is none."""
    strengths: tuple[Strength, ...] = ()
    """One per LoRA of the recipe."""
    hypernetwork_weights: tuple[float, ...] = ()
    """One per hypernetwork of the recipe; 1 is as trained, 0 is none."""
    controls: tuple[Control, ...] = ()
    """One per ControlNet of the recipe."""
    image_prompts: tuple[ImagePrompt, ...] = ()
    """One per IP-Adapter of the recipe."""
    source: Source | None = None
    """None: made from noise alone."""
    hires: Hires | None = None
    """None: made in one pass."""
    upscale: float | None = None
    """Final size over the size that is made; None: the upscaler's own factor, without one 1."""
    tile_px: int = 512
    """The picture is enlarged in squares of this side; 0: as a whole."""
    axes: tuple[tuple[str, Any], ...] = ()
    """The sweep's axes and this cell's values, as typed: `(("lora.style_a.weight", 0.5), ("seed", 3))`."""
    config: str = "{}"
    """The cell's whole resolved configuration as canonical JSON: what `sdbatch replay` runs again."""

    @property
    def task(self) -> str:
        """`txt2img`, `hires`, `img2img` or `inpaint`."""
        if self.source is None:
            return "hires" if self.hires else "txt2img"
        return "img2img" if self.source.mask is None else "inpaint"

    @property
    def decoded_px(self) -> tuple[int, int]:
        """(width, height) of the last pass, which is the largest: what memory is needed for, before any upscaler."""
        return (self.hires.width, self.hires.height) if self.hires else (self.width, self.height)


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
