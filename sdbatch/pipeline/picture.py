"""Pictures given as input: turned upright, laid on white, brought to the size of the image that is made.

Each is read once for all images of a batch and its neighbours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from sdbatch.adapters.picture import lay_on_white, read_upright
from sdbatch.cell import Source
from sdbatch.plan.picture import mask_of

_KEPT_PICTURES = 32

Pixels = npt.NDArray[np.uint8]
"""[height, width, 3] of a picture, [height, width] of a mask."""


def read_source(source: Source, size_px: tuple[int, int]) -> Pixels:
    """The source picture at a size (width, height). Raises CellError when the file is no picture."""
    return _read_picture(source.image, source.image_sha256, size_px, source.resize)


def read_mask(source: Source, size_px: tuple[int, int]) -> Pixels:
    """Its mask at the same size, blurred: 255 is made anew. Raises CellError when the file is no picture."""
    assert source.mask is not None
    return _read_mask(source.mask.image, source.mask.image_sha256, size_px, source.resize, source.mask.blur_px)


def put_back(made: Pixels, source: Source) -> Pixels:
    """An image with the source's own pixels outside of the mask. The blur fades from one to the other outside of the mask's edge.

    Source: A1111's overlay, whose mask is twice the blurred one.
    """
    if source.mask is None or not source.mask.paste:
        return made
    size_px = (made.shape[1], made.shape[0])
    share = np.minimum(read_mask(source, size_px).astype(np.float32) * (2 / 255), 1.0)[:, :, None]
    kept = read_source(source, size_px).astype(np.float32)
    return (kept + share * (made.astype(np.float32) - kept)).round().astype(np.uint8)


@lru_cache(maxsize=_KEPT_PICTURES)
def _read_picture(path: str, sha256: str, size_px: tuple[int, int], resize: str) -> Pixels:
    del sha256  # part of the key: a file of the same name may be another picture tomorrow
    return fit(lay_on_white(read_upright(path)), size_px, resize)


@lru_cache(maxsize=_KEPT_PICTURES)
def _read_mask(path: str, sha256: str, size_px: tuple[int, int], resize: str, blur_px: int) -> Pixels:
    del sha256
    pixels = fit(mask_of(read_upright(path)), size_px, resize)
    if not blur_px:
        return pixels
    return _frozen(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur_px)))


def fit(picture: Image.Image, size_px: tuple[int, int], resize: str) -> Pixels:
    """A picture at a size: stretched, or as large as covers it and cut, or as large as fits and its edges drawn out."""
    if picture.size == size_px:
        return _frozen(picture)
    if resize == "stretch":
        return _frozen(picture.resize(size_px, Image.Resampling.LANCZOS))
    width, height = size_px
    whole = whole_size(picture.size, size_px, covers=resize == "crop")
    left, top = width // 2 - whole[0] // 2, height // 2 - whole[1] // 2
    pixels = np.asarray(picture.resize(whole, Image.Resampling.LANCZOS))
    pixels = pixels[max(-top, 0) : max(-top, 0) + height, max(-left, 0) : max(-left, 0) + width]
    below, right = height - pixels.shape[0] - max(top, 0), width - pixels.shape[1] - max(left, 0)
    edges = ((max(top, 0), below), (max(left, 0), right), (0, 0))
    return _frozen(np.pad(pixels, edges[: pixels.ndim], mode="edge"))


def whole_size(size: tuple[int, int], target: tuple[int, int], *, covers: bool) -> tuple[int, int]:
    """(width, height) in the shape of the one, as small as covers the other or as large as fits into it."""
    width, height = target
    is_wide = width * size[1] > size[0] * height  # the target, compared with the size
    if is_wide == covers:
        return width, max(1, size[1] * width // size[0])
    return max(1, size[0] * height // size[1]), height


def _frozen(picture: Image.Image | Pixels) -> Pixels:
    """Pixels that several images share."""
    pixels: Pixels = np.array(picture)
    pixels.setflags(write=False)
    return pixels
