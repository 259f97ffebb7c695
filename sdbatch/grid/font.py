"""Type for grids: a font that has the letters of the text, and lines that fit their box."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDE_COVERAGE = ("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc")
"""System fonts that write Chinese, Japanese and Korean, by file name; the first that is installed is used."""

FIRST_OF_CJK = "\u2e80"
"""Before it come the scripts and signs that DejaVu writes; from here on, a font of `WIDE_COVERAGE`."""


@lru_cache(maxsize=64)
def load_font(size_px: int, script: str = "latin") -> Font:
    """A font of that height. Script: `latin` (Pillow's own), `wide` (DejaVu, which comes with matplotlib) or `cjk`."""
    for candidate in _candidates(script):
        try:
            return ImageFont.truetype(candidate, size_px)
        except OSError:
            continue
    return ImageFont.load_default(size_px)


def font_for(text: str, size_px: int) -> Font:
    """The font that has the letters of this text."""
    if text.replace("…", "").isascii():
        return load_font(size_px)
    return load_font(size_px, "cjk" if any(letter >= FIRST_OF_CJK for letter in text) else "wide")


def text_width(text: str, size_px: int) -> int:
    """Width in pixels of one line."""
    text = clean(text)
    return round(font_for(text, size_px).getlength(text))


def line_height(size_px: int) -> int:
    """Distance of two base lines in pixels."""
    return round(size_px * 1.3)


def wrap(text: str, size_px: int, width_px: int, max_lines: int) -> list[str]:
    """Break into at most `max_lines` lines of at most `width_px`, between words where possible; the rest becomes `…`."""
    lines: list[str] = []
    rest = " ".join(clean(text).split())
    while rest and len(lines) < max_lines:
        if len(lines) == max_lines - 1:
            lines.append(elide(rest, size_px, width_px))
            break
        head = _longest_fit(rest, size_px, width_px)
        lines.append(head.rstrip())
        rest = rest[len(head) :].lstrip()
    return lines or [""]


def elide(text: str, size_px: int, width_px: int) -> str:
    """The text, or as much of its beginning as fits, with `…`."""
    text = clean(text)
    if text_width(text, size_px) <= width_px:
        return text
    kept = _fitting_letters(text, size_px, width_px - text_width("…", size_px))
    return text[:kept].rstrip() + "…"


def clean(text: str) -> str:
    """Control characters and halves of surrogates as spaces: a font has no picture of them, and laying them out fails."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _longest_fit(text: str, size_px: int, width_px: int) -> str:
    count = max(1, _fitting_letters(text, size_px, width_px))
    if count >= len(text):
        return text
    space = text.rfind(" ", 0, count + 1)
    if space > 0:
        return text[:space]
    # A key path such as `lora.style_a.weight` breaks after a dot or underscore.
    mark = max(text.rfind(sign, 0, count) for sign in "._-/,")
    return text[: mark + 1] if mark > count // 3 else text[:count]


def _fitting_letters(text: str, size_px: int, width_px: int) -> int:
    """How many letters fit, by bisection: the width grows with their number."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle], size_px) <= width_px:
            low = middle
        else:
            high = middle - 1
    return low


def _candidates(script: str) -> list[str]:
    if script == "latin":
        return []
    wide = _matplotlib_font("DejaVuSans.ttf")
    return [*(WIDE_COVERAGE if script == "cjk" else ()), *([wide] if wide else []), "DejaVuSans.ttf"]


@lru_cache(maxsize=4)
def _matplotlib_font(name: str) -> str | None:
    """Path of a font inside matplotlib, found without importing it (0.3 s)."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / name
    return str(path) if path.is_file() else None
