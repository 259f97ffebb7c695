"""The measures of a grid: how large its cells and letters are, and what goes on which page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdbatch.grid.axes import Axes, Axis
from sdbatch.grid.entry import Value
from sdbatch.grid.font import line_height, text_width, wrap

HEADER_LINES = 2
"""A column header or section heading takes at most so many lines."""

SHARE_OF_PAGE = 0.8
"""Of its pixels a page keeps some for title, headers and footer; this share is for cells with the gaps between them."""
SHARE_OF_IMAGES = 0.65
"""And this one for the images alone."""

CAPTION_GAP_PX = 4
"""Between an image and its caption."""


@dataclass(frozen=True, slots=True)
class Style:
    """What a user may set of a grid's looks."""

    min_cell_px: int = 160
    """Shorter side of a cell at least; smaller images are enlarged."""
    max_cell_px: int = 512
    """Longer side of a cell at most; larger images are reduced."""
    max_page_px: int = 24_000_000
    """Pixels of one page at most; cells shrink to `min_cell_px` first, then there are more pages."""
    columns: int = 8
    """Columns of a comparison with a single axis, which is set in lines like text."""
    resample: str = "lanczos"
    """How images are scaled: `lanczos`, or `nearest` to see their pixels."""
    captions: tuple[str, ...] | None = None
    """Parameters to print under every image, such as `("seed",)`; None: those that change together with an axis."""
    line_px: int = 1800
    """Sections stand side by side up to this width."""
    max_pages: int = 24
    """Pages at most; what comes after them is told on each page."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the grid that is drawn in one piece: some columns and rows of one section."""

    section: Value
    columns: tuple[Value, ...]
    rows: tuple[Value, ...]
    headed: bool = True
    """False for the later lines of a single axis: they continue the one above."""


Shelf = tuple[Block, ...]
"""Blocks side by side."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything in pixels."""

    cell_w: int
    cell_h: int
    text: int
    """Height of the letters of headers and footer."""
    small: int
    """Height of the letters of axis titles and captions."""
    title: int
    gap: int
    margin: int
    row_header_w: int
    """0 when there are no rows to name."""
    header_lines: int
    """Lines of the longest column header; 0 when there are no columns to name."""
    section_lines: int
    """Lines of the longest section heading; 0 without sections."""
    caption_h: int

    @property
    def axis_title_h(self) -> int:
        """The name of the columns' parameter and the line below it."""
        return line_height(self.small) + 2 * self.gap if self.header_lines else 0

    @property
    def header_h(self) -> int:
        """The values above the columns."""
        return self.header_lines * line_height(self.text) + self.gap if self.header_lines else 0

    @property
    def section_h(self) -> int:
        """The heading of a section."""
        return line_height(self.small) + self.section_lines * line_height(self.text) + 4 * self.gap if self.section_lines else 0

    def block_width(self, block: Block) -> int:
        """Row headers and images."""
        return self.row_header_w + len(block.columns) * (self.cell_w + self.gap) - self.gap

    @property
    def between(self) -> int:
        """Space between two blocks of a shelf."""
        return self.text * 2

    def shelf_width(self, shelf: Shelf) -> int:
        """Of its blocks with the space between them."""
        return sum(self.block_width(block) for block in shelf) + self.between * (len(shelf) - 1)

    def shelf_height(self, shelf: Shelf) -> int:
        """Of its highest block."""
        return max(self.block_height(block) for block in shelf)

    def block_height(self, block: Block) -> int:
        """Headings, headers, images and the space below."""
        images = len(block.rows) * (self.cell_h + self.caption_h + self.gap) - self.gap
        headings = self.section_h + self.axis_title_h if block.headed else 0
        return headings + self.header_h + images + self.gap * 3


MOST_CAPTIONS = 3
"""Lines below an image that are chosen by themselves; the page in the browser has all."""


def caption_keys(axes: Axes, style: Style) -> tuple[str, ...]:
    """What to print under every image."""
    return axes.followers[:MOST_CAPTIONS] if style.captions is None else style.captions


def cut_blocks(axes: Axes, style: Style, measures: Measures) -> list[Block]:
    """The grid in pieces, none larger than a page."""
    columns: tuple[Value, ...] = axes.x.values if axes.x else (None,)
    rows: tuple[Value, ...] = axes.y.values if axes.y else (None,)
    sections: tuple[Value, ...] = axes.z.values if axes.z else (None,)
    most_cells = max(
        1,
        int(SHARE_OF_PAGE * style.max_page_px / ((measures.cell_w + measures.gap) * (measures.cell_h + measures.caption_h + measures.gap))),
    )
    wide = style.columns if not axes.y else max(1, min(len(columns), max(most_cells // len(rows), math.isqrt(most_cells))))
    high = max(1, most_cells // min(wide, len(columns)))
    return [
        Block(section, column_part, row_part, headed=bool(axes.y) or place == 0)
        for section in sections
        for place, column_part in enumerate(_even_parts(columns, wide))
        for row_part in _even_parts(rows, high)
    ]


def fill_pages(blocks: Sequence[Block], style: Style, measures: Measures) -> list[list[Shelf]]:
    """Blocks onto pages in their order; a page is full when the next shelf would pass the limit of pixels."""
    pages: list[list[Shelf]] = []
    width = height = 0
    for shelf in fill_shelves(blocks, style, measures):
        shelf_w, shelf_h = measures.shelf_width(shelf), measures.shelf_height(shelf)
        if not pages or max(width, shelf_w) * (height + shelf_h) > style.max_page_px:
            pages.append([])
            width = height = 0
        pages[-1].append(shelf)
        width, height = max(width, shelf_w), height + shelf_h
    return pages


def fill_shelves(blocks: Sequence[Block], style: Style, measures: Measures) -> list[Shelf]:
    """Whole sections side by side as far as they fit; parts of one section stay below each other."""
    shelves: list[Shelf] = []
    whole = {block.section for block in blocks if sum(other.section == block.section for other in blocks) == 1}
    for block in blocks:
        wider = (*shelves[-1], block) if shelves else (block,)
        beside = len(wider) > 1 and whole.issuperset(part.section for part in wider)
        if beside and measures.shelf_width(wider) <= style.line_px:
            shelves[-1] = wider
        else:
            shelves.append((block,))
    return shelves


def measure(axes: Axes, image_size: tuple[int, int], style: Style) -> Measures:
    """The largest cells, not above the image's own size unless that is very small, with which everything fits on one page."""
    largest = _cell_scale(image_size, style)
    smallest = min(largest, style.min_cell_px / min(image_size))
    count = math.prod(len(axis.values) for axis in axes.used) or 1
    fitting = math.sqrt(SHARE_OF_IMAGES * style.max_page_px / (count * image_size[0] * image_size[1]))
    scale = max(smallest, min(largest, fitting))
    cell_w, cell_h = (max(1, round(side * scale)) for side in image_size)
    text = max(13, min(26, round(min(cell_w, cell_h) * 0.075)))
    small = max(12, round(text * 0.85))
    captions = len(caption_keys(axes, style))
    return Measures(
        cell_w=cell_w,
        cell_h=cell_h,
        text=text,
        small=small,
        title=round(text * 1.6),
        gap=max(4, text // 3),
        margin=round(text * 2.2),
        row_header_w=_row_header_width(axes, text, small),
        header_lines=_count_lines(axes.x, text, cell_w),
        section_lines=_count_lines(axes.z, text, cell_w * (len(axes.x.values) if axes.x else 1)),
        caption_h=line_height(small) * captions + (CAPTION_GAP_PX * 3 if captions else 0),
    )


def _cell_scale(image_size: tuple[int, int], style: Style) -> float:
    """Own size, at least `min_cell_px` on the shorter and at most `max_cell_px` on the longer side."""
    return min(max(1.0, style.min_cell_px / min(image_size)), style.max_cell_px / max(image_size))


def _count_lines(axis: Axis | None, text: int, width: int) -> int:
    return max(len(wrap(axis.label(value), text, width, HEADER_LINES)) for value in axis.values) if axis else 0


def _row_header_width(axes: Axes, text: int, small: int) -> int:
    if axes.y is None:
        return 0
    widest = max(text_width(axes.y.label(value)[:200], text) for value in axes.y.values)
    title = min(text_width(axes.y.key, small), text * 9)
    return min(max(widest, title, text * 3), text * 14) + text


def _even_parts(values: tuple[Value, ...], most: int) -> list[tuple[Value, ...]]:
    """Cut into the fewest parts of at most `most`, of nearly equal length: 10 by 8 is 5 and 5."""
    count = math.ceil(len(values) / most)
    length = math.ceil(len(values) / count)
    return [values[start : start + length] for start in range(0, len(values), length)]
