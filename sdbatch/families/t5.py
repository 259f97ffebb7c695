"""Where T5's tokenizer is taken from: the model's own folder, else the one that ships with sdbatch."""

from __future__ import annotations

from pathlib import Path

from sdbatch.cell import Recipe

FOLDER = "tokenizer_2"
"""Its name in a diffusers folder."""
FILES = ("tokenizer.json", "spiece.model")
"""One of these makes a folder a tokenizer's."""
SHIPPED = Path(__file__).parent / "configs" / "flux_dev" / FOLDER
"""Every T5 v1.1 reads the same words: models without a tokenizer of their own take this one."""


def find_t5_tokenizer(recipe: Recipe) -> Path:
    """The folder of T5's tokenizer: beside T5's own folder, in the checkpoint's diffusers folder, in the config folder, or ours."""
    folders = [Path(recipe.checkpoint.path) / FOLDER, Path(recipe.config) / FOLDER]
    if recipe.text_encoder_2 is not None:
        own = Path(recipe.text_encoder_2.path)
        folders = [own / FOLDER, own.parent / FOLDER, *folders]
    return next((folder for folder in folders if any((folder / name).is_file() for name in FILES)), SHIPPED)
