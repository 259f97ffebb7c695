"""Type for grids: a font that has the letters of the text, and lines that fit their box.

A letter that no font of this machine has is written out, `[fox face]` or `\\u4e00`: all boxes look alike.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDE_COVERAGE = ("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc")
"""System fonts that write Chinese, Japanese and Korean, by file name; the first that is installed is used."""

FIRST_OF_CJK = "\u2e80"
"""Before it come the scripts and signs that DejaVu writes; from here on, a font of `WIDE_COVERAGE`."""

NO_LETTER = "\U0010ffff"
"""No font has it, so it is drawn as what a font draws for every letter that it lacks."""

ASK_S = 5
"""How long fontconfig may take to name a font."""


@lru_cache(maxsize=64)
def load_font(size_px: int, path: str = "") -> Font:
    """The font of that file at that height; without a file Pillow's own, which writes English."""
    return ImageFont.truetype(path, size_px) if path else ImageFont.load_default(size_px)


def font_for(text: str, size_px: int) -> Font:
    """The font that has the letters of this text, or most of them."""
    return load_font(size_px, _font_file(text))


def legible(text: str) -> str:
    """The text, with each letter that its font lacks written out."""
    text = clean(text)
    file = _font_file(text)
    return "".join(letter if not file or _has(file, letter) else _spell(letter) for letter in text)


def is_spelled(text: str) -> bool:
    """Whether `legible` writes a letter out."""
    return legible(text) != clean(text)


@lru_cache(maxsize=4096)
def _font_file(text: str) -> str:
    """Empty for Pillow's own."""
    if text.replace("…", "").isascii():
        return ""
    files = _wide_fonts() if any(letter >= FIRST_OF_CJK for letter in text) else _wide_fonts()[-1:]
    lacking = {file: frozenset(letter for letter in set(text) if not _has(file, letter)) for file in files}
    best = min(files, key=lambda file: len(lacking[file]), default="")
    for letter in sorted(lacking.get(best, ()))[:1]:
        if (asked := _ask_fontconfig(letter)) and sum(not _has(asked, other) for other in set(text)) < len(lacking[best]):
            return asked
    return best


@lru_cache(maxsize=1)
def _wide_fonts() -> tuple[str, ...]:
    """Those that are installed; DejaVu, which comes with matplotlib, last."""
    found = [name for name in (*WIDE_COVERAGE, _matplotlib_font("DejaVuSans.ttf") or "DejaVuSans.ttf") if _opens(name)]
    return tuple(found)


def _opens(file: str) -> bool:
    try:
        load_font(12, file)
    except OSError:
        return False
    return True


@lru_cache(maxsize=4096)
def _has(file: str, letter: str) -> bool:
    """Whether a font has a picture of a letter; one that is blank needs none."""
    drawn = _drawn(file, letter)
    return not any(drawn) or drawn != _drawn(file, NO_LETTER)


def _drawn(file: str, letter: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 4), letter, font=load_font(16, file), fill=255)
    return image.tobytes()


@lru_cache(maxsize=256)
def _ask_fontconfig(letter: str) -> str:
    """The file of a font of this machine that has a letter; empty for none, and where there is no fontconfig."""
    program = shutil.which("fc-list")
    if program is None:
        return ""
    try:
        told = subprocess.run([program, "-f", "%{file}\n", f":charset={ord(letter):x}"], capture_output=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    files = sorted(told.stdout.decode(errors="replace").split("\n"), key=lambda file: ("egular" not in file, file))
    return next((file for file in files if file and _opens(file)), "")


def _spell(letter: str) -> str:
    """`[fox face]` of a picture, `\\u4e00` of a letter; nothing of what only joins others."""
    match unicodedata.category(letter):
        case "So":
            return f"[{unicodedata.name(letter, 'sign').lower()}]"
        case "Mn" | "Cf":
            return ""
        case _:
            return f"\\u{ord(letter):04x}"


def text_width(text: str, size_px: int) -> int:
    """Width in pixels of one line."""
    text = legible(text)
    return round(font_for(text, size_px).getlength(text))


def line_height(size_px: int) -> int:
    """Distance of two base lines in pixels."""
    return round(size_px * 1.3)


def wrap(text: str, size_px: int, width_px: int, max_lines: int) -> list[str]:
    """Break into at most `max_lines` lines of at most `width_px`, between words where possible; the rest becomes `…`."""
    lines: list[str] = []
    rest = " ".join(legible(text).split())
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
    text = legible(text)
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


@lru_cache(maxsize=4)
def _matplotlib_font(name: str) -> str | None:
    """Path of a font inside matplotlib, found without importing it (0.3 s)."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / name
    return str(path) if path.is_file() else None
