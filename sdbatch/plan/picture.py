"""Whether a file is a picture, found out before anything runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdbatch.errors import WeightFileError
from sdbatch.weights import picture

if TYPE_CHECKING:
    from PIL.Image import Image

MASKED = 128
"""A mask's pixel from here on is made anew."""


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as the picture is seen. Raises WeightFileError for what is no whole picture."""
    with _told(path):
        return picture.read_size(path)


def has_white(path: Path) -> bool:
    """Whether a mask masks anything. Raises WeightFileError for what is no whole picture."""
    with _told(path):
        image = picture.open_picture(path)
    return any(mask_of(image).histogram()[MASKED:])


def mask_of(image: Image) -> Image:
    """A mask's shades. As in A1111, what has been drawn on a transparent sheet is the mask, whatever its colour."""
    opacity = image.getchannel("A") if "A" in image.getbands() else None
    return image.convert("L") if opacity is None or opacity.getextrema() == (255, 255) else opacity


@contextmanager
def _told(path: Path) -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise WeightFileError(f"{path}: it is no picture that can be read ({error}).") from error
