"""A sheet of paper to write and paste on; the colours of a grid."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from sdbatch.grid.font import font_for, line_height, text_width

PAPER, INK, MUTED, RULE = "#ffffff", "#1c1e21", "#70757c", "#dcdfe3"


@dataclass(slots=True)
class Paper:
    """An image with the two or three ways in which grids write on it."""

    image: Image.Image
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    def write(self, at: tuple[int, int], text: str, size_px: int, ink: str = INK) -> None:
        """One line, its upper left corner at `at`."""
        self.pen.text(at, text, font=font_for(text, size_px), fill=ink)

    def write_lines(self, at: tuple[int, int], lines: list[str], size_px: int, ink: str = INK) -> None:
        """Lines below each other, flush left."""
        for number, line in enumerate(lines):
            self.write((at[0], at[1] + number * line_height(size_px)), line, size_px, ink)

    def centre_lines(self, centre: int, top: int, lines: list[str], size_px: int, ink: str = INK) -> None:
        """Lines below each other, each centred on the column `centre`."""
        for number, line in enumerate(lines):
            self.write((centre - text_width(line, size_px) // 2, top + number * line_height(size_px)), line, size_px, ink)

    def rule(self, left: int, top: int, width: int) -> None:
        """A thin horizontal line."""
        self.pen.line([(left, top), (left + width, top)], fill=RULE, width=1)
