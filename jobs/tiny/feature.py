"""A fixed feature space for judging pictures: coarse colours and edge directions, nothing learned."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jobs.tiny import picture

COLOUR_CELLS, EDGE_CELLS, DIRECTIONS = 16, 8, 6
EDGE_WEIGHT = 1.0


def _blocks(array: np.ndarray, cells: int) -> np.ndarray:
    """Means over a grid. Shapes: [n, h, w, c] → [n, cells, cells, c]."""
    count, height, width, channels = array.shape
    return array.reshape(count, cells, height // cells, cells, width // cells, channels).mean((2, 4))


def _edge_directions(grey: np.ndarray) -> np.ndarray:
    """Strength of edges by direction, per cell. Shapes: [n, h, w] → [n, cells, cells, directions]."""
    down, across = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, across)
    sector = ((np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS).astype(int).clip(0, DIRECTIONS - 1)
    planes = (sector[..., None] == np.arange(DIRECTIONS)) * strength[..., None]
    return _blocks(planes, EDGE_CELLS)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.reshape(len(rows), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def colour_cells(rgb: np.ndarray) -> np.ndarray:
    """Mean colours of 16 × 16 cells. Shapes: [n, h, w, 3] → [n, 16, 16, 3]."""
    return _blocks(rgb, COLOUR_CELLS)


def describe_arrays(rgb: np.ndarray) -> np.ndarray:
    """Features of float pictures [n, 128, 128, 3] in 0..1: one unit row per picture."""
    colours = 1 - colour_cells(rgb)  # distance from white paper
    edges = _edge_directions(rgb @ picture.LUMINANCE)
    return _unit(np.concatenate([_unit(colours), EDGE_WEIGHT * _unit(edges)], 1))


def to_array(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures as float [n, h, w, 3] in 0..1."""
    return np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])


def describe(images: Sequence[Image.Image]) -> np.ndarray:
    """Features of PIL pictures."""
    return describe_arrays(to_array(images))


def describe_rgba(pictures: np.ndarray) -> np.ndarray:
    """Features of uint8 RGBA emoji on white."""
    return describe_arrays(np.stack([picture.compose(rgba) for rgba in pictures]))


def nearest(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For each row the number of the most similar reference."""
    return (features @ references.T).argmax(1)
