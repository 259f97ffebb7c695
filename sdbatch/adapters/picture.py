"""Pictures that a cell is made of, as people see them."""

from __future__ import annotations

from PIL import Image

from sdbatch.errors import CellError
from sdbatch.weights.picture import open_picture


def read_upright(path: str) -> Image.Image:
    """A picture turned as the camera was held. Raises CellError for what is none."""
    try:
        return open_picture(path)
    except ValueError as error:
        raise CellError(f"picture {path} cannot be read ({error}).") from error


def lay_on_white(picture: Image.Image) -> Image.Image:
    """Its colours, white where it is transparent."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
