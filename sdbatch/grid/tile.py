"""One cell of a grid: its image, or a hatched tile that says why there is none."""

from __future__ import annotations

from PIL import Image, ImageDraw

from sdbatch.grid.entry import Entry
from sdbatch.grid.font import line_height, text_width, wrap
from sdbatch.grid.layout import Measures, Style
from sdbatch.grid.paper import MUTED, PAPER, Paper

MISSING = ("#f4f5f6", "#dde0e4", MUTED)
"""Fill, hatching and letters of a tile without an image."""
FAILED = ("#fdf2f1", "#f2cdc8", "#a4362a")

HATCH_PX = 12
"""Distance of two lines of the hatching."""


def fit_image(image: Image.Image, measures: Measures, style: Style) -> Image.Image:
    """The whole image, whatever its shape, centred in a cell."""
    scale = min(measures.cell_w / image.width, measures.cell_h / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if style.resample == "nearest" else Image.Resampling.LANCZOS
    scaled = image.convert("RGB") if image.size == size else image.convert("RGB").resize(size, method)
    if size == (measures.cell_w, measures.cell_h):
        return scaled
    tile = Image.new("RGB", (measures.cell_w, measures.cell_h), PAPER)
    tile.paste(scaled, ((measures.cell_w - size[0]) // 2, (measures.cell_h - size[1]) // 2))
    return tile


def draw_absent(entry: Entry | None, measures: Measures) -> Image.Image:
    """A hatched tile: `missing`, `failed:` with the reason, or that the image lies elsewhere."""
    failed = entry is not None and entry.failed
    fill, stroke, ink = FAILED if failed else MISSING
    paper = Paper(_hatch(measures.cell_w, measures.cell_h, fill, stroke))
    size, gap = measures.small, measures.gap
    most = max(1, (measures.cell_h - 2 * gap) // line_height(size))
    lines = wrap(_say(entry), size, measures.cell_w - 4 * gap, most)
    height, widest = len(lines) * line_height(size), max(text_width(line, size) for line in lines)
    centre, top = measures.cell_w // 2, (measures.cell_h - height) // 2
    paper.pen.rectangle([centre - widest // 2 - gap, top - gap // 2, centre + widest // 2 + gap, top + height + gap // 2], fill=fill)
    paper.centre_lines(centre, top, lines, size, ink)
    return paper.image


def _say(entry: Entry | None) -> str:
    if entry is None:
        return "missing"
    return f"failed: {entry.error}" if entry.failed else "image not on this machine"


def _hatch(width: int, height: int, fill: str, stroke: str) -> Image.Image:
    tile = Image.new("RGB", (width, height), fill)
    pen = ImageDraw.Draw(tile)
    for start in range(-height, width, HATCH_PX):
        pen.line([(start, height), (start + height, 0)], fill=stroke, width=1)
    pen.rectangle([0, 0, width - 1, height - 1], outline=stroke)
    return tile
