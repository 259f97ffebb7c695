"""One page of a grid: title, sections, headers, cells and footer on one sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from sdbatch.grid.axes import Axes
from sdbatch.grid.entry import Value
from sdbatch.grid.font import elide, line_height, wrap
from sdbatch.grid.footer import set_footer
from sdbatch.grid.layout import CAPTION_GAP_PX, HEADER_LINES, Block, Measures, Shelf
from sdbatch.grid.paper import MUTED, PAPER, Paper

Tile = Callable[[Value, Value, Value], Image.Image]
"""The picture of the cell at column, row and section."""
Caption = Callable[[Value, Value, Value], list[str]]
"""What stands below that cell."""

LEAST_WIDTH = 26
"""Width of a page in heights of a letter, so that title and footer can be read below a single small image."""


class Page:
    """Draws shelves of blocks below each other; what a cell shows is the caller's matter."""

    def __init__(self, axes: Axes, measures: Measures, tile: Tile, caption: Caption) -> None:
        self.axes, self.m, self.tile, self.caption = axes, measures, tile, caption
        self.paper = Paper(Image.new("RGB", (1, 1)))

    def draw(self, shelves: Sequence[Shelf], title: str, summary: str) -> Image.Image:
        """The finished page."""
        m = self.m
        width = max(m.text * LEAST_WIDTH, *(m.shelf_width(shelf) for shelf in shelves))
        title_lines = wrap(title, m.title, width, 2) if title else []
        title_h = len(title_lines) * line_height(m.title) + (m.gap * 2 if title_lines else 0)
        footer = set_footer(self.axes, summary, width, m)
        height = title_h + sum(m.shelf_height(shelf) for shelf in shelves) + footer.height
        self.paper = Paper(Image.new("RGB", (width + 2 * m.margin, height + 2 * m.margin), PAPER))
        self.paper.write_lines((m.margin, m.margin), title_lines, m.title)
        top = m.margin + title_h
        before: Block | None = None
        for shelf in shelves:
            left = m.margin
            for block in shelf:
                self._draw_block(block, (left, top), continued=before is not None and before.section == block.section)
                left += m.block_width(block) + m.between
                before = block
            top += m.shelf_height(shelf)
        footer.write(self.paper, m.margin, top, width, m.small)
        return self.paper.image

    def _draw_block(self, block: Block, corner: tuple[int, int], continued: bool) -> None:
        m = self.m
        start, top = corner
        if block.headed:
            self._draw_section(block, corner, continued)
            self._draw_axis_titles(block, (start, top + m.section_h))
            top += m.section_h + m.axis_title_h
        self._draw_column_headers(block, (start, top))
        top += m.header_h
        for number, row in enumerate(block.rows):
            cell_top = top + number * (m.cell_h + m.caption_h + m.gap)
            if self.axes.y:
                self._draw_row_header(self.axes.y.label(row), (start, cell_top))
            for place, column in enumerate(block.columns):
                left = start + m.row_header_w + place * (m.cell_w + m.gap)
                self.paper.image.paste(self.tile(column, row, block.section), (left, cell_top))
                lines = [elide(line, m.small, m.cell_w) for line in self.caption(column, row, block.section)]
                self.paper.write_lines((left, cell_top + m.cell_h + CAPTION_GAP_PX), lines, m.small, MUTED)

    def _draw_section(self, block: Block, corner: tuple[int, int], continued: bool) -> None:
        if self.axes.z is None:
            return
        left, top = corner
        m, width = self.m, self.m.block_width(block)
        name = self.axes.z.key + (" (continued)" if continued else "")
        self.paper.rule(left, top, width)
        self.paper.write((left, top + m.gap * 2), name, m.small, MUTED)
        lines = wrap(self.axes.z.label(block.section), m.text, width, HEADER_LINES)
        self.paper.write_lines((left, top + m.gap * 2 + line_height(m.small)), lines, m.text)

    def _draw_axis_titles(self, block: Block, corner: tuple[int, int]) -> None:
        start, top = corner
        m, left = self.m, start + self.m.row_header_w
        if self.axes.x:
            span = self.m.block_width(block) - m.row_header_w
            self.paper.centre_lines(left + span // 2, top, [elide(self.axes.x.key, m.small, span)], m.small, MUTED)
            self.paper.rule(left, top + line_height(m.small) + m.gap // 2, span)
        if self.axes.y:
            foot = top + m.axis_title_h + m.header_h - m.gap - line_height(m.text)
            self.paper.write((start, foot), elide(self.axes.y.key, m.small, m.row_header_w - m.text), m.small, MUTED)

    def _draw_column_headers(self, block: Block, corner: tuple[int, int]) -> None:
        m = self.m
        start, top = corner
        if self.axes.x is None:
            return
        for place, value in enumerate(block.columns):
            lines = wrap(self.axes.x.label(value), m.text, m.cell_w, HEADER_LINES)
            centre = start + m.row_header_w + place * (m.cell_w + m.gap) + m.cell_w // 2
            self.paper.centre_lines(centre, top + m.header_h - m.gap - len(lines) * line_height(m.text), lines, m.text)

    def _draw_row_header(self, text: str, corner: tuple[int, int]) -> None:
        m = self.m
        start, top = corner
        most = max(1, min(8, m.cell_h // line_height(m.text)))
        lines = wrap(text, m.text, m.row_header_w - m.text, most)
        first = top + (m.cell_h - len(lines) * line_height(m.text)) // 2
        self.paper.write_lines((start, first), lines, m.text)
