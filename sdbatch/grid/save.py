"""Make the grid of some rows and save it: `grid.png` (more pages as `grid-2.png`, ...) and `grid.html`."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from sdbatch.errors import ConfigError
from sdbatch.grid.axes import Axes, choose_axes
from sdbatch.grid.draw import count_gone, draw_entries, place_entries
from sdbatch.grid.entry import Entry, read_entries
from sdbatch.grid.html import render_page
from sdbatch.grid.layout import Style
from sdbatch.results.disk import write_file

Finder = Callable[[str, str], Path | None]
"""From an image id and the image's path in its sweep folder to a file on this machine."""

_PAGE = re.compile(r"grid-\d+\.png")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked of a grid; `None` leaves an axis to us, `none` leaves it empty."""

    x: str | None = None
    y: str | None = None
    z: str | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """The files of a grid, and what is on its axes."""

    pictures: tuple[Path, ...]
    page: Path
    axes: Axes


def save_grid(table: pa.Table, find: Finder, folder: Path, wish: Wish | None = None, style: Style | None = None) -> Saved:
    """Draw rows into a folder, over the grid that was there.

    Raises: ConfigError when there are no rows, or for an axis that no image has.
    """
    wish, style = wish or Wish(), style or Style()
    entries = read_entries(table)
    if not entries:
        raise ConfigError("grid: there are no images to compare yet. Run the sweep first; `sdbatch status OUT` tells how far it is.")
    axes = choose_axes(entries, wish.x, wish.y, wish.z)
    found: dict[str, Path | None] = {}

    def locate(entry: Entry) -> Path | None:
        if entry.image_id not in found:
            found[entry.image_id] = find(entry.image_id, entry.image)
        return found[entry.image_id]

    gone = count_gone(place_entries(entries, axes), locate)
    pages = draw_entries(entries, axes, lambda entry: _load(locate(entry)), style, wish.title, gone)
    pictures = [folder / ("grid.png" if number == 1 else f"grid-{number}.png") for number in range(1, len(pages) + 1)]
    for picture, drawn in zip(pictures, pages, strict=True):
        write_file(picture, _encode(drawn))
    for old in folder.glob("grid-*.png"):
        if _PAGE.fullmatch(old.name) and old not in pictures:
            old.unlink()
    page = folder / "grid.html"
    write_file(page, render_page(entries, axes, locate, page, wish.title).encode())
    return Saved(tuple(pictures), page, axes)


def _load(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
        # Damaged or no image: as good as not there; `sdbatch verify` names it.
        return None


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
