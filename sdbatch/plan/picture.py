"""Whether a file is a picture, found out before anything runs."""

from __future__ import annotations

from pathlib import Path

from sdbatch.errors import WeightFileError

MASKED = 128
"""A mask's pixel from here on is made anew."""

_ORIENTATION, _FIRST_TURNED = 0x0112, 5
"""The tag of a photograph that was taken upright or lying, and the first of its values that swaps width and height."""
_EIGHTH = 8
"""A JPEG is decoded at an eighth of its size: damage shows as well, in a fraction of the time."""


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as the picture is seen. Raises WeightFileError for what is no whole picture."""
    from PIL import Image  # only plans with pictures pay for it

    try:
        with Image.open(path) as image:
            size = image.size
            if image.format != "JPEG":
                image.verify()
                return size
            image.draft("RGB", (size[0] // _EIGHTH, size[1] // _EIGHTH))
            image.load()
            is_turned = image.getexif().get(_ORIENTATION, 1) >= _FIRST_TURNED
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WeightFileError(f"{path}: it is no picture that can be read ({error}).") from error
    return (size[1], size[0]) if is_turned else size


def has_white(path: Path) -> bool:
    """Whether a mask masks anything. Raises WeightFileError for what is no whole picture."""
    from PIL import Image  # as above

    try:
        with Image.open(path) as image:
            opacity = image.getchannel("A") if "A" in image.getbands() else None
            drawn = image.convert("L") if opacity is None or opacity.getextrema() == (255, 255) else opacity
            return any(drawn.histogram()[MASKED:])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WeightFileError(f"{path}: it is no picture that can be read ({error}).") from error
