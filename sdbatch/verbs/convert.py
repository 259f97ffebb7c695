"""`sdbatch convert FILE out=NEW`: pickle to safetensors, single file to diffusers folder and back, dtype, EMA, prune, VAE."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.cell import WeightFile
from sdbatch.errors import ConfigError, WeightFileError, did_you_mean
from sdbatch.plan.files import FileBook, find_config
from sdbatch.verbs.merge import read_dtype
from sdbatch.verbs.progress import Progress, ended_by_signals
from sdbatch.verbs.words import MODELS, Option, model_folders, read_words
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.kinds import GROUPS

OPTIONS = {
    "out": Option("", "NEW.safetensors for a single file, or the name of a new diffusers folder"),
    "dtype": Option("", "float32, float16 or bfloat16; unset: as it is"),
    "ema": Option("false", "take the averaged weights of a full checkpoint"),
    "prune": Option("false", "leave out what no image needs: averaged weights, optimizer states"),
    "vae": Option("", "bake this VAE in"),
    "config": Option("", "folder of the weightless configs, or a shipped one's name; unset: the family's own"),
    **MODELS,
}


def main(arguments: Sequence[str]) -> int:
    """Convert. Returns the exit code."""
    words = read_words("convert", arguments, ("FILE",), OPTIONS)
    if not words["out"]:
        raise ConfigError("out= is missing: give NEW.safetensors for a single file, or the name of a new diffusers folder.")
    out = Path(words["out"]).expanduser()
    if out.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ConfigError(f"out={out}: pickle files are read but never written. Give NEW.safetensors, or a new folder.")
    book = FileBook(Catalog(model_folders(words)))
    file = _find(words["FILE"], book)
    vae = book.weight("vae", words["vae"]) if words["vae"] else None
    config = find_config(words["config"]) if words["config"] else None
    flags = {key: words[key] == "true" for key in ("ema", "prune")}
    dtype = read_dtype(words["dtype"])
    from sdbatch.merge.convert import Change, convert  # torch

    progress = Progress(f"writing {out.name}")
    with ended_by_signals():
        convert(Change(file, out, dtype, vae=vae, config=config, **flags), progress)
    sys.stdout.write(f"{out}: {progress.finish()}\n")
    return 0


def _find(name: str, book: FileBook) -> WeightFile:
    """A weight file of any group. Raises WeightFileError."""
    for group in GROUPS:
        try:
            return book.weight(group, name)
        except WeightFileError:
            continue
    options = [option for group in GROUPS for option in book.catalog.options(group)]
    raise WeightFileError(f"{name}: there is no such weight file. {did_you_mean(name, options)} Or give a path.")
