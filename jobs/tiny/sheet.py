"""Sample sheets: pictures in a grid, each with its caption."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

CAPTION_PX = 12


def save_sheet(pictures: list[Image.Image], path: Path, columns: int, captions: list[str] | None = None) -> None:
    """Write one PNG. Side effects: creates the folder."""
    width, height = pictures[0].size
    cell = height + (CAPTION_PX if captions else 0)
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * width, rows * cell), "white")
    pen = ImageDraw.Draw(canvas)
    for index, image in enumerate(pictures):
        x, y = index % columns * width, index // columns * cell
        canvas.paste(image, (x, y))
        if captions:
            pen.text((x + 2, y + height), captions[index][: width // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def to_images(pictures_NCHW: torch.Tensor) -> list[Image.Image]:
    """Pictures in -1..1 → PIL."""
    array = ((pictures_NCHW.clamp(-1, 1).permute(0, 2, 3, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(item)) for item in array]


def save_tensors(pictures_NCHW: torch.Tensor, path: Path, columns: int, captions: list[str] | None = None) -> None:
    """Write pictures in -1..1 as one PNG."""
    save_sheet(to_images(pictures_NCHW), path, columns, captions)
