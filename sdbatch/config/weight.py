"""What a user may say of weight files: every group whose options are files of the models folder."""

import builtins
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from sdbatch.config.choice import Prediction, Preprocessor
from sdbatch.config.field import beside

# ruff: noqa: RUF009 - `beside` makes a field, and each field is its own


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
class PartConf(FileConf):
    """What replaces a part of the checkpoint: the autoencoder, or a text encoder (SDXL has a second, FLUX's second is T5)."""

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
    """Unset: the file of the item's own name."""
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
class PictureConf(FileConf):
    """An adapter that sees a picture, from one share of the steps to another."""

    file: str = MISSING
    image: str = MISSING
    """The picture; of a ControlNet: the control image, or the picture to preprocess."""
    weight: float = 1.0
    """0 is none, 1 as trained."""
    start: float = 0.0
    """Share of the steps at which it begins."""
    end: float = 1.0
    """Share of the steps at which it ends."""


@dataclass
class ControlNetConf(PictureConf):
    """One ControlNet of the stack."""

    preprocessor: Preprocessor = Preprocessor.none
    """What is done to the picture first."""


@dataclass
class IpAdapterConf(PictureConf):
    """One IP-Adapter of the stack: it makes a picture part of the prompt."""


@dataclass
class ImageEncoderConf(FileConf):
    """A CLIP image encoder, through which IP-Adapters see. With none in the stack, the one that fits is taken by itself."""

    file: str = MISSING
