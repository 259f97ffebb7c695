"""Make one cell again the way it was made, batch mates included when its sweep is still there."""

from __future__ import annotations

from pathlib import Path

from sdbatch.cell import Cell, Picture
from sdbatch.pipeline.build import build_engine
from sdbatch.plan.store import PlanFile
from sdbatch.results.folder import SweepFolder
from sdbatch.run.batch import batch_size_name, batches
from sdbatch.run.device import find_places
from sdbatch.run.settings import Settings


def make_again(image: Path, cell: Cell, device: str | None) -> Picture:
    """Make the cell. Inside its sweep folder the same batch is denoised, since batch size changes the last digits."""
    mates, settings = _batch_of(image, cell)
    place = find_places(device or settings.device, settings.threads)[0]
    engine = build_engine(cell.recipe.engine, "cuda" if place.device.startswith("cuda") else place.device, place.threads)
    engine.prepare(cell.recipe)
    pictures = engine.start(mates, lambda done, total: None).finish()
    return next(picture for picture in pictures if picture.cell.image_id == cell.image_id)


def _batch_of(image: Path, cell: Cell) -> tuple[list[Cell], Settings]:
    folder = SweepFolder(_sweep_of(image))
    if not folder.plan.is_file():
        return [cell], Settings("replay")
    settings = Settings.from_dict(folder.read_about().get("settings", {"name": "replay"}))
    plan = PlanFile(folder.plan)
    batch_size = settings.batch_size or folder.read_settled(batch_size_name(cell)) or 1
    if (shard := plan.shard_of(cell.image_id)) is not None:
        for block in batches(plan.shard(shard), batch_size):
            if any(mate.image_id == cell.image_id for mate in block):
                return [cell if mate.image_id == cell.image_id else mate for mate in block], settings
    return [cell], settings


def _sweep_of(image: Path) -> Path:
    """The folder above `images/` that the image lies in, or its own folder."""
    return next((parent.parent for parent in image.absolute().parents if parent.name == "images"), image.absolute().parent)
