"""`sdbatch convert FILE out=NEW`: pickle to safetensors, single file to diffusers folder and back, dtype, EMA, prune, VAE."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdbatch.cell import WeightFile
from sdbatch.errors import ConfigError, WeightFileError, did_you_mean
from sdbatch.plan.files import FileBook, find_config
from sdbatch.verbs.merge import read_dtype
from sdbatch.verbs.progress import Progress, ended_by_signals
from sdbatch.verbs.words import read_words
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.kinds import GROUPS

OPTIONS = {"out": "", "dtype": "", "ema": "false", "prune": "false", "vae": "", "config": "", "paths": "models"}


def main(arguments: Sequence[str]) -> int:
    """Convert. Returns the exit code."""
    words = read_words("convert", arguments, ("FILE",), OPTIONS)
    if not words["out"]:
        raise ConfigError("out= is missing: give NEW.safetensors for a single file, or the name of a new diffusers folder.")
    out = Path(words["out"]).expanduser()
    if out.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ConfigError(f"out={out}: pickle files are read but never written. Give NEW.safetensors, or a new folder.")
    book = FileBook(Catalog([Path(root) for root in words["paths"].split(",")]))
    file = _find(words["FILE"], book)
    vae = book.weight("vae", words["vae"]) if words["vae"] else None
    config = find_config(words["config"]) if words["config"] else None
    flags = {key: _read_flag(words, key) for key in ("ema", "prune")}
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


def _read_flag(words: Mapping[str, str], key: str) -> bool:
    if words[key] not in ("true", "false"):
        raise ConfigError(f"{key}={words[key]}: choose true or false.")
    return words[key] == "true"
