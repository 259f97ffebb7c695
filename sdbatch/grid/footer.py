"""What stands below a grid: the parameters that all its images share, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdbatch.grid.axes import Axes, Axis
from sdbatch.grid.candidate import TEXT_KEYS
from sdbatch.grid.entry import IMAGE, PARAMETERS, SWEEP, Value, label
from sdbatch.grid.font import line_height, text_width, wrap
from sdbatch.grid.layout import Measures
from sdbatch.grid.paper import INK, MUTED, Paper

TEXT_LINES = 3
"""A prompt in the footer takes at most so many lines."""


HIDDEN = frozenset({"family", SWEEP, IMAGE})
"""What the checkpoint's name, the title and the image itself say already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A word or line of the footer at its place, relative to the footer's corner."""

    left: int
    top: int
    text: str
    ink: str


@dataclass(frozen=True, slots=True)
class Footer:
    """A footer set in its width, ready to be written."""

    height: int
    pieces: tuple[Piece, ...]

    def write(self, paper: Paper, left: int, top: int, width: int, size_px: int) -> None:
        """Put it on the paper below a thin line."""
        paper.rule(left, top, width)
        for piece in self.pieces:
            paper.write((left + piece.left, top + piece.top), piece.text, size_px, piece.ink)


def set_footer(axes: Axes, summary: str, width: int, measures: Measures) -> Footer:
    """Pairs of name and value flow like words; prompts have lines of their own."""
    setter = _Setter(width, measures.small, measures.gap * 2)
    for key, value in _shared(axes.constants).items():
        if key in TEXT_KEYS:
            setter.add_text(key, label(value))
    for axis in axes.used:
        if axis.head or axis.tail:
            setter.add_text(axis.key, f"{axis.head}…{axis.tail}")
    for key, value in _shared(axes.constants).items():
        if key not in TEXT_KEYS:
            setter.add_pair(key, label(value))
    setter.end_line()
    for axis in axes.held:
        setter.add_note(_held(axis))
    setter.add_note(summary)
    return Footer(setter.top + measures.gap, tuple(setter.pieces))


def _shared(constants: Mapping[str, Value]) -> dict[str, Value]:
    """The constants worth reading, best known first."""
    shown = {key: constants[key] for key in PARAMETERS if constants.get(key) not in (None, "")}
    shown |= {key: value for key, value in constants.items() if key not in shown and value not in (None, "")}
    shown = {key: value for key, value in shown.items() if key not in HIDDEN and (key, value) != ("lora", "none")}
    if "width" in shown and "height" in shown:
        size = f"{shown.pop('width')} x {shown.pop('height')} px"
        shown = shown | {"size": size}
    echoes = [key for key in shown if key.endswith(".text_encoder_weight") and shown[key] == shown.get(key.replace("text_encoder_", ""))]
    return {key: value for key, value in shown.items() if key not in echoes}


def _held(axis: Axis) -> str:
    text = label(axis.values[0])
    text = text if len(text) <= 60 else text[:59] + "…"
    return f"{axis.key} differs too: shown is {text}, one of {len(axis.values)} values. Choose it as x, y or z to see the others."


class _Setter:
    """Sets pieces one after the other, as a typesetter does."""

    def __init__(self, width: int, size_px: int, space_px: int) -> None:
        self.width, self.size, self.space = width, size_px, space_px
        self.left, self.top = 0, space_px
        self.pieces: list[Piece] = []

    def add_pair(self, key: str, value: str) -> None:
        name_w, value_w = text_width(key, self.size) + self.size // 2, text_width(value, self.size)
        if self.left and self.left + name_w + value_w > self.width:
            self.end_line()
        self.pieces.append(Piece(self.left, self.top, key, MUTED))
        lines = wrap(value, self.size, max(self.size * 6, self.width - self.left - name_w), 1)
        self.pieces.append(Piece(self.left + name_w, self.top, lines[0], INK))
        self.left += name_w + min(value_w, self.width) + self.space * 2

    def add_text(self, key: str, value: str) -> None:
        self.end_line()
        name_w = text_width(key, self.size) + self.size // 2
        self.pieces.append(Piece(0, self.top, key, MUTED))
        for line in wrap(value, self.size, max(self.size * 6, self.width - name_w), TEXT_LINES):
            self.pieces.append(Piece(name_w, self.top, line, INK))
            self.top += line_height(self.size)
        self.left = 0

    def add_note(self, text: str) -> None:
        self.end_line()
        for line in wrap(text, self.size, self.width, TEXT_LINES):
            self.pieces.append(Piece(0, self.top, line, MUTED))
            self.top += line_height(self.size)

    def end_line(self) -> None:
        if self.left:
            self.left, self.top = 0, self.top + line_height(self.size)
