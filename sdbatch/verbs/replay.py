"""`sdbatch replay IMAGE.png [to=FILE]`: make an image again from what its PNG says, and compare."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.cell import Cell
from sdbatch.errors import ConfigError
from sdbatch.verbs.words import MODELS, Option, model_folders, read_words

OPTIONS = {
    "to": Option("", "where to write it; unset: IMAGE.replay.png beside it"),
    "device": Option("", "cpu, cuda or cuda:N; unset: the GPU, or the CPU where there is none"),
    **MODELS,
}


def main(arguments: Sequence[str]) -> int:
    """Replay. Returns 0 when the same bytes came out, 1 when not."""
    words = read_words("replay", arguments, ("IMAGE",), OPTIONS)
    from sdbatch.results.png import png_of
    from sdbatch.run.replay import make_again

    image = Path(words["IMAGE"])
    cell = read_recorded(image, model_folders(words))
    picture = make_again(image, cell, words["device"] or None)
    data = png_of(cell, picture.pixels, picture.facts.get("autov3"))
    to = Path(words["to"]) if words["to"] else image.with_name(f"{image.stem}.replay.png")
    if to.resolve() == image.resolve():
        raise ConfigError(f"to={to}: this is the image itself. Choose another name.")
    to.write_bytes(data)
    same = hashlib.sha256(data).digest() == hashlib.sha256(image.read_bytes()).digest()
    sys.stdout.write(
        f"{to}: {'the same bytes' if same else 'not the same bytes; devices, versions and batch sizes change the last digits'}\n"
    )
    return 0 if same else 1


def read_recorded(image: Path, models: Sequence[Path]) -> Cell:
    """The cell of a PNG, its files found again by name and checked by content. Raises SdbatchError."""
    from sdbatch.config.schema import identity_defaults
    from sdbatch.errors import WeightFileError
    from sdbatch.plan.cells import cell_of, recipe_of
    from sdbatch.plan.files import FileBook
    from sdbatch.plan.identity import file_digests, image_id
    from sdbatch.results.png import read_cell
    from sdbatch.weights.catalog import Catalog

    facts = read_cell(image)
    config = json.loads(facts["config"])
    book = FileBook(Catalog(models))
    digests = file_digests(config, book)
    found = image_id(config, identity_defaults(), digests)
    cell = cell_of(config, recipe_of(config, book), book, facts["image_id"])
    if found != facts["image_id"]:
        changed = changed_files(facts, cell)
        raise WeightFileError(
            f"{image}: cannot be made again, because these files are not the same as then: {', '.join(changed) or 'its configs'}."
        )
    return cell


def changed_files(recorded: dict[str, object], cell: Cell) -> list[str]:
    """Names of the files and pictures whose content is not what the PNG recorded."""
    then = json.dumps(recorded)
    files = [(file.name, file.sha256) for file in (cell.recipe.checkpoint, *(file for _, _, file in cell.recipe.parts()))]
    pictures = [*cell.controls, *cell.image_prompts, cell.source, cell.source and cell.source.mask]
    files += [(Path(picture.image).name, picture.image_sha256) for picture in pictures if picture]
    return [name for name, sha256 in files if sha256 not in then]
