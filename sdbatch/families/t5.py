"""Where T5's tokenizer is looked for: it does not ship with sdbatch, so that it must come with the model."""

from __future__ import annotations

from pathlib import Path

from sdbatch.cell import Recipe

FOLDER = "tokenizer_2"
"""Its name in a diffusers folder."""
FILES = ("tokenizer.json", "spiece.model")
"""One of these makes a folder a tokenizer's."""


def t5_tokenizer_folders(recipe: Recipe) -> list[Path]:
    """The folders that may hold it: beside T5's own folder, in the checkpoint's diffusers folder, in the config folder."""
    folders = [Path(recipe.checkpoint.path) / FOLDER, Path(recipe.config) / FOLDER]
    if recipe.text_encoder_2 is None:
        return folders
    own = Path(recipe.text_encoder_2.path)
    return [own / FOLDER, own.parent / FOLDER, *folders]


def find_t5_tokenizer(recipe: Recipe) -> Path | None:
    """The folder of T5's tokenizer, or None."""
    return next((folder for folder in t5_tokenizer_folders(recipe) if any((folder / name).is_file() for name in FILES)), None)


def missing_t5_tokenizer(recipe: Recipe) -> str:
    """What to do when it is nowhere."""
    looked = ", ".join(str(folder) for folder in t5_tokenizer_folders(recipe))
    return (
        f"T5, this family's second text encoder, needs its tokenizer, which does not ship with sdbatch. Set family.config to the model's "
        f"own diffusers folder, whose {FOLDER} holds {' or '.join(FILES)}; its weights may be missing. Looked in {looked}."
    )
