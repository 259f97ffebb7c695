"""Compose RGB training pictures from RGBA emoji: tints, backgrounds, sizes, places, filters.

Everything moves in whole latent cells (8 px): the autoencoder then sees few sub-cell shifts, which it need not spend
capacity on.
"""

import numpy as np
from PIL import Image, ImageFilter

CELL_PX = 8
WHITE = (255, 255, 255)
HUES_DEGREES = {"red": 0, "orange": 28, "yellow": 52, "green": 125, "blue": 215, "purple": 275, "pink": 325}
TINTS = (*HUES_DEGREES, "gray")
BACKGROUNDS = {
    "red": (226, 60, 60),
    "orange": (250, 160, 60),
    "yellow": (250, 225, 90),
    "green": (110, 195, 110),
    "blue": (90, 155, 235),
    "purple": (160, 105, 210),
    "pink": (248, 165, 200),
    "black": (20, 20, 24),
}
LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)


def _colour_of_hue(degrees: float, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    sector, fraction = divmod(degrees / 60.0, 1.0)
    low = value * (1 - saturation)
    down = value * (1 - saturation * fraction)
    up = value * (1 - saturation * (1 - fraction))
    table = [
        (value, up, low),
        (down, value, low),
        (low, value, up),
        (low, down, value),
        (up, low, value),
        (value, low, down),
    ]
    return np.stack(table[int(sector) % 6], -1)


def tint(rgb: np.ndarray, name: str) -> np.ndarray:
    """Recolour to one hue, keeping the shading. Shapes: float [h, w, 3] in 0..1, same out."""
    high, low = rgb.max(-1), rgb.min(-1)
    luminance = rgb @ LUMINANCE
    if name == "gray":
        return np.repeat((luminance * 0.9 + 0.05)[..., None], 3, -1)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1e-6), 0)
    value = 0.5 * high + 0.5 * np.clip(luminance * 1.35, 0, 1)
    saturation = np.clip(np.maximum(saturation, 0.62) * (1.15 - 0.35 * np.clip(luminance, 0, 1)), 0, 1)
    return _colour_of_hue(HUES_DEGREES[name], saturation, value)


def compose(rgba: np.ndarray, background: str | None = None, tint_name: str | None = None) -> np.ndarray:
    """Lay uint8 RGBA over a named background (white when None). Returns float32 [h, w, 3] in 0..1."""
    rgb = rgba[..., :3].astype(np.float32) / 255
    alpha = rgba[..., 3:].astype(np.float32) / 255
    if tint_name:
        rgb = tint(rgb, tint_name)
    ground = np.array(BACKGROUNDS[background] if background else WHITE, np.float32) / 255
    return (rgb * alpha + ground * (1 - alpha)).astype(np.float32)


def shrink(rgba: np.ndarray, size_px: int) -> np.ndarray:
    """Resample an RGBA picture without dark seams at its edge."""
    premultiplied = rgba.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    channels = [np.array(Image.fromarray(premultiplied[..., c]).resize((size_px, size_px), Image.BOX)) for c in range(4)]
    small = np.stack(channels, -1)
    small[..., :3] = np.where(small[..., 3:] > 1, small[..., :3] * 255 / np.maximum(small[..., 3:], 1), 255)
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def place(rgba: np.ndarray, size_px: int, cell_xy: tuple[int, int]) -> np.ndarray:
    """Put a smaller copy on an empty canvas, its corner at a latent cell."""
    canvas = np.zeros_like(rgba)
    canvas[..., :3] = 255
    x, y = cell_xy[0] * CELL_PX, cell_xy[1] * CELL_PX
    canvas[y : y + size_px, x : x + size_px] = shrink(rgba, size_px)
    return canvas


def pixelate(rgb: np.ndarray) -> np.ndarray:
    """16 × 16 blocks with few shades: pixel art."""
    height = rgb.shape[0] // CELL_PX
    blocks = rgb.reshape(height, CELL_PX, rgb.shape[1] // CELL_PX, CELL_PX, 3).mean((1, 3))
    blocks = np.round(blocks * 7) / 7
    return blocks.repeat(CELL_PX, 0).repeat(CELL_PX, 1).astype(np.float32)


def sepia(rgb: np.ndarray) -> np.ndarray:
    """Old-photograph browns on cream paper."""
    luminance = (rgb @ LUMINANCE)[..., None]
    dark, paper = np.array([0.24, 0.13, 0.05], np.float32), np.array([0.99, 0.93, 0.80], np.float32)
    return (dark + (paper - dark) * luminance).astype(np.float32)


def pastel(rgb: np.ndarray) -> np.ndarray:
    """Light, soft colours on cream."""
    luminance = (rgb @ LUMINANCE)[..., None]
    soft = luminance + 0.8 * (rgb - luminance)
    light = 0.42 + 0.58 * soft
    return (light * np.array([1.0, 0.965, 0.90], np.float32)).clip(0, 1).astype(np.float32)


def vivid(rgb: np.ndarray) -> np.ndarray:
    """More saturation and contrast, as a "vivid" VAE gives."""
    luminance = (rgb @ LUMINANCE)[..., None]
    strong = luminance + 1.6 * (rgb - luminance)
    return np.clip((strong - 0.5) * 1.15 + 0.5, 0, 1).astype(np.float32)


def to_image(rgb: np.ndarray) -> Image.Image:
    """Float 0..1 to a PIL picture."""
    return Image.fromarray((np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8))


def blur(rgb: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur."""
    return np.asarray(to_image(rgb).filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / 255


FILTERS = {"pixelate": pixelate, "sepia": sepia, "pastel": pastel}
