"""`sdbatch merge A B [C] out=NEW.safetensors`: a checkpoint of several, LoRAs baked in, or a LoRA of several LoRAs.

sdbatch merge A loras=NAME:STRENGTH,NAME out=...      bakes LoRAs in
sdbatch merge loras=NAME,NAME out=...                 makes one LoRA of them
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdbatch.cell import Merge, Strength, WeightFile
from sdbatch.errors import ConfigError
from sdbatch.merge.blocks import read_blocks
from sdbatch.merge.hashing import LaterHasher
from sdbatch.merge.table import METHODS, find_fault
from sdbatch.plan.files import FileBook
from sdbatch.verbs.progress import Progress, ended_by_signals
from sdbatch.verbs.words import MODELS, Option, model_folders, read_names
from sdbatch.weights.catalog import Catalog

OPTIONS = {
    "out": Option("", "the new file, NEW.safetensors"),
    "method": Option("weighted_sum", "; ".join(f"{name}: {facts.formula}" for name, facts in METHODS.items())),
    "ratio": Option("0.5", "0 is A, 1 is B; of add_difference: the multiplier"),
    "blocks": Option("", "a ratio for each block: a preset such as GRAD_V, or a list of 25 numbers (SDXL: 19)"),
    "density": Option("0.5", "share of the changes that ties and dare keep"),
    "seed": Option("0", "of what dare drops"),
    "loras": Option("", "NAME, NAME:STRENGTH or NAME:STRENGTH:TEXT_ENCODER_STRENGTH, separated by commas"),
    "rank": Option("", "of one LoRA made of several; unset: the sum of theirs, which loses nothing"),
    "dtype": Option("", "float32, float16 or bfloat16; unset: as A is"),
    **MODELS,
}
MOST_CHECKPOINTS = 3


def main(arguments: Sequence[str]) -> int:
    """Merge. Returns the exit code."""
    names, words = read_names("merge", arguments, ("[A]", "[B]", "[C]"), OPTIONS)
    if len(names) > MOST_CHECKPOINTS or not (names or words["loras"]):
        raise ConfigError(f"{len(names)} checkpoints: give two or three to merge, or loras=. More: sdbatch merge --help.")
    out = read_out(words["out"])
    catalog, hasher = Catalog(model_folders(words)), LaterHasher()
    whole, book = FileBook(catalog, hasher), FileBook(catalog)
    checkpoints = [whole.weight("checkpoint", name) for name in names]
    loras = tuple(_read_lora(text, book) for text in words["loras"].split(",") if text)
    read_dtype(words["dtype"])
    progress = Progress(f"merging into {out.name}")
    with ended_by_signals():
        if checkpoints:
            _make_checkpoint(checkpoints, loras, words, out, progress, hasher.settle)
        else:
            _make_lora(loras, words, out, progress)
    sys.stdout.write(f"{out}: {progress.finish()}\n")
    return 0


def _make_checkpoint(
    checkpoints: list[WeightFile],
    loras: tuple[tuple[WeightFile, Strength], ...],
    words: Mapping[str, str],
    out: Path,
    progress: Progress,
    settle: Callable[[str], str],
) -> None:
    merge = _read_merge(checkpoints[1:], words) if len(checkpoints) > 1 else None
    if merge is None and not loras:
        raise ConfigError(f"{checkpoints[0].name} alone: give a second checkpoint to merge with, or loras=NAME to bake in.")
    if merge is not None and (fault := find_fault(merge)):
        raise ConfigError(f"{_WORDS.get(fault[0], fault[0])}: {fault[1]}")
    from sdbatch.merge.checkpoint import Order, make_checkpoint  # torch

    make_checkpoint(Order(checkpoints[0], out, merge, loras, words["dtype"] or None), progress, settle)


_WORDS = {"c": "C"}


def _make_lora(loras: tuple[tuple[WeightFile, Strength], ...], words: Mapping[str, str], out: Path, progress: Progress) -> None:
    rank = int(read_number(words, "rank")) if words["rank"] else None
    from sdbatch.merge.lora import LoraOrder, make_lora  # torch

    make_lora(LoraOrder(loras, out, rank, words["dtype"] or None), progress)


def _read_merge(others: list[WeightFile], words: Mapping[str, str]) -> Merge:
    return Merge(
        b=others[0],
        c=others[1] if len(others) > 1 else None,
        method=words["method"],
        ratio=read_number(words, "ratio"),
        blocks=read_blocks(words["blocks"]) if words["blocks"] else (),
        density=read_number(words, "density"),
        seed=int(read_number(words, "seed")),
    )


def _read_lora(text: str, book: FileBook) -> tuple[WeightFile, Strength]:
    """`style_a`, `style_a:0.8`, or `style_a:0.8:0.5` with the text encoder's own strength."""
    name, *numbers = text.split(":")
    try:
        model, *more = [float(number) for number in numbers] or [1.0]
    except ValueError:
        raise ConfigError(f"loras={text}: give NAME, NAME:STRENGTH, or NAME:STRENGTH:TEXT_ENCODER_STRENGTH.") from None
    return book.weight("lora", name), Strength(model, more[0] if more else model)


def read_out(text: str) -> Path:
    """A new weight file's path. Raises ConfigError."""
    if not text:
        raise ConfigError("out= is missing: give the name of the new file, such as out=models/checkpoints/new.safetensors.")
    if not text.endswith(".safetensors"):
        raise ConfigError(f"out={text}: the new file must end in .safetensors.")
    return Path(text).expanduser()


def read_number(words: Mapping[str, str], key: str) -> float:
    """An option that is a number. Raises ConfigError."""
    try:
        return float(words[key])
    except ValueError:
        raise ConfigError(f"{key}={words[key]}: is no number.") from None


def read_dtype(text: str) -> str | None:
    """An option that is a number format, None for as it is. Raises ConfigError."""
    if text not in ("", "float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype={text}: choose float32, float16 or bfloat16.")
    return text or None
