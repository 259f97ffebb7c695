"""Pictures given as input, whoever drew them: read whole, upright, and in 8 bits a channel, or refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 100_000_000
"""The largest picture that is read: as many as the largest cameras take, and 400 MB of memory. A PNG of 40 kB can claim more."""

_ORIENTATION, _FIRST_TURNED = 0x0112, 5
"""The tag of a photograph that was taken upright or lying, and the first of its values that swaps width and height."""
_EIGHTH = 8
"""A JPEG is decoded at an eighth of its size: damage shows as well, in a fraction of the time."""


def open_picture(path: Path | str) -> Image.Image:
    """The picture as it is seen. Raises ValueError with the reason for what is none, or larger than MOST_PIXELS."""
    from PIL import ImageOps

    with _opened(path) as image:
        return ImageOps.exif_transpose(_in_8_bits(image))


def read_size(path: Path | str) -> tuple[int, int]:
    """(width, height) in pixels as it is seen, of a JPEG or PNG once it is known to be whole. Raises ValueError as `open_picture`."""
    from PIL import Image  # only plans with pictures pay for it

    with _opened(path) as image:
        size = image.size
        tags = Image.Exif()
        tags.load(image.info.get("exif", b""))  # image.getexif() would decode a PNG
        if image.format == "JPEG":
            image.draft("RGB", (size[0] // _EIGHTH, size[1] // _EIGHTH))
            image.load()
        else:
            image.verify()
    return (size[1], size[0]) if tags.get(_ORIENTATION, 1) >= _FIRST_TURNED else size


@contextmanager
def _opened(path: Path | str) -> Generator[Image.Image]:
    from PIL import Image

    try:
        with warnings.catch_warnings(category=Image.DecompressionBombWarning, action="ignore"), Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width}x{image.height} pixels, and at most {MOST_PIXELS / 1e6:.0f} million are read"
                raise ValueError(f"it has {size}: make it smaller")
            if image.mode in ("F", "I"):
                raise ValueError("it has 32 bits a channel: save it with 8 or 16")
            yield image
    except Exception as error:  # whatever Pillow's many readers trip over in a file that is not what it says
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(reason) from error


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A copy without the lower half of 16 bits, which Pillow would take for white. Reads the picture."""
    import numpy as np
    from PIL import Image

    image.load()
    if not image.mode.startswith("I;16"):
        return image.copy()
    values: Any = np.asarray(image)
    made = Image.fromarray((values >> 8).astype(np.uint8))
    made.info = dict(image.info)
    return made
