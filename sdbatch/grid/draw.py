"""Draw a comparison as labelled pages: pure functions from rows, axes and a way to load an image."""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from sdbatch.grid.axes import Axes
from sdbatch.grid.entry import Entry, Value, label
from sdbatch.grid.font import is_spelled
from sdbatch.grid.layout import Style, caption_keys, cut_blocks, fill_pages, measure
from sdbatch.grid.page import Page
from sdbatch.grid.tile import draw_absent, fit_image

Loader = Callable[[Entry], Image.Image | None]
"""The image of an entry, or None when it is not on this machine."""

Locate = Callable[[Entry], Path | None]
"""The file of an entry's image, or None when it is not on this machine."""

Place = tuple[Value, Value, Value]
"""The values of x, y and z at one cell; None for an axis that is not used."""

FALLBACK_SIZE = (512, 512)
"""Shape of the cells when no row knows its size."""


def draw_entries(entries: Sequence[Entry], axes: Axes, load: Loader, style: Style, title: str, gone: int = 0) -> list[Image.Image]:
    """The pages of a comparison; one, unless it is larger than `style.max_page_px`.

    Cells without an image are hatched and say `missing`, or `failed:` with the reason; `gone` of the images are not on this machine.
    """
    placed = place_entries(entries, axes)
    measures = measure(axes, largest_size(placed.values()), style)
    pages = fill_pages(cut_blocks(axes, style, measures), style, measures)
    summary = summarize(placed, len(entries), axes, gone)
    if any(is_spelled(axis.label(value)) for axis in axes.used for value in axis.values):
        summary += "; letters that no font of this machine has are written out, grid.html shows them"
    if len(pages) > style.max_pages:
        summary += f"; {len(pages)} pages are more than the {style.max_pages} that are drawn: choose other axes, or look at grid.html"
        pages = pages[: style.max_pages]
    captions = caption_keys(axes, style)

    def tile(x: Value, y: Value, z: Value) -> Image.Image:
        entry = placed.get((x, y, z))
        image = load(entry) if entry is not None and not entry.failed else None
        return draw_absent(entry, measures) if image is None else fit_image(image, measures, style)

    def caption(x: Value, y: Value, z: Value) -> list[str]:
        entry = placed.get((x, y, z))
        return [f"{key} {label(entry.values.get(key))}" for key in captions] if entry else []

    page = Page(axes, measures, tile, caption)
    return [page.draw(blocks, _number(title, number, len(pages)), summary) for number, blocks in enumerate(pages, start=1)]


def place_entries(entries: Iterable[Entry], axes: Axes) -> dict[Place, Entry]:
    """Which entry stands where. Of several the first good one; held parameters admit only their first value."""
    placed: dict[Place, Entry] = {}
    for entry in entries:
        if any(entry.values.get(axis.key) != axis.values[0] for axis in axes.held):
            continue
        x, y, z = (entry.values.get(axis.key) if axis else None for axis in (axes.x, axes.y, axes.z))
        known = placed.get((x, y, z))
        if known is None or (known.failed and not entry.failed):
            placed[x, y, z] = entry
    return placed


def count_gone(placed: Mapping[Place, Entry], locate: Locate) -> int:
    """How many images were made that are not on this machine."""
    return sum(not entry.failed and locate(entry) is None for entry in placed.values())


def summarize(placed: Mapping[Place, Entry], total: int, axes: Axes, gone: int) -> str:
    """One line of what is there and what is not: `60 images, 1 not on this machine, 2 failed, 2 missing`."""
    failed = sum(entry.failed for entry in placed.values())
    shown, places = len(placed) - failed - gone, math.prod(len(axis.values) for axis in axes.used)
    parts = [f"{shown} image" if shown == 1 else f"{shown} images"]
    parts += [f"{gone} not on this machine"] if gone else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{places - len(placed)} missing"] if places > len(placed) else []
    return ", ".join(parts) + (f", out of {total} in all" if total > len(placed) else "")


def largest_size(entries: Iterable[Entry]) -> tuple[int, int]:
    """Largest width and height among the images, in pixels."""
    sizes = [(entry.values.get("width"), entry.values.get("height")) for entry in entries]
    known = [(width, height) for width, height in sizes if isinstance(width, int) and isinstance(height, int)]
    return (max(width for width, _ in known), max(height for _, height in known)) if known else FALLBACK_SIZE


def _number(title: str, number: int, count: int) -> str:
    return title if count == 1 else f"{title} (page {number} of {count})".strip()
