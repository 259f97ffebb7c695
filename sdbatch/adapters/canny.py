"""Canny's edges (1986) in numpy: Sobel gradients, thinning along the gradient, hysteresis between two thresholds.

As OpenCV's `Canny(image, 100, 200)`: no blur first, the strongest of the three channels, |gx| + |gy| as the strength.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOW = 100
HIGH = 200
_TAN_22 = 0.41421356
_TAN_67 = 2.41421356


def draw_edges(pixels: npt.NDArray[np.uint8], low: int = LOW, high: int = HIGH) -> npt.NDArray[np.uint8]:
    """White edges on black: [height, width, 3] in and out.

    Args:
        pixels: The picture, RGB.
        low: A pixel weaker than this is never an edge.
        high: An edge must have one pixel stronger than this.
    """
    gx, gy = _gradients(pixels.astype(np.int32))
    strength = np.abs(gx) + np.abs(gy)
    thin = _is_ridge(gx, gy, strength) & (strength > low)
    edges = _grow(thin & (strength > high), thin)
    return np.repeat((edges * np.uint8(255))[:, :, None], 3, axis=2)


def _gradients(pixels: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Sobel's two derivatives of the channel that changes most, per pixel."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = p[:-2] + 2 * p[1:-1] + p[2:]
    down = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    gx, gy = across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
    channel = np.argmax(np.abs(gx) + np.abs(gy), axis=2)[:, :, None]
    return np.take_along_axis(gx, channel, axis=2)[:, :, 0], np.take_along_axis(gy, channel, axis=2)[:, :, 0]


def _is_ridge(gx: npt.NDArray[np.int32], gy: npt.NDArray[np.int32], strength: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Where a pixel is stronger than both its neighbours along the gradient."""
    s = np.pad(strength, 1)
    ax, ay = np.abs(gx), np.abs(gy)
    rows, columns = strength.shape

    def at(dy: int, dx: int) -> npt.NDArray[np.int32]:
        return s[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]

    same_sign = (gx ^ gy) >= 0
    flat, steep = ay < _TAN_22 * ax, ay > _TAN_67 * ax
    horizontal = (strength > at(0, -1)) & (strength >= at(0, 1))
    vertical = (strength > at(-1, 0)) & (strength >= at(1, 0))
    falling = (strength > at(-1, -1)) & (strength > at(1, 1))
    rising = (strength > at(-1, 1)) & (strength > at(1, -1))
    return np.where(flat, horizontal, np.where(steep, vertical, np.where(same_sign, falling, rising)))


def _grow(seeds: npt.NDArray[np.bool_], allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The allowed pixels that touch a seed, directly or through others."""
    edges, left = np.pad(seeds, 1), np.pad(allowed & ~seeds, 1)
    frontier = np.argwhere(edges)
    offsets = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])
    while len(frontier):
        near = (frontier[:, None, :] + offsets).reshape(-1, 2)
        frontier = np.unique(near[left[near[:, 0], near[:, 1]]], axis=0)
        edges[frontier[:, 0], frontier[:, 1]] = True
        left[frontier[:, 0], frontier[:, 1]] = False
    return edges[1:-1, 1:-1]
