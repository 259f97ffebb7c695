"""Outlines: the ControlNet's condition, and how well a picture agrees with one."""

import numpy as np
from scipy import ndimage

from jobs.tiny import picture

LOW, HIGH = 0.10, 0.25
SMOOTH_PX = 1.0
REACH_PX = 2  # an edge this near counts as found


def canny(rgb: np.ndarray) -> np.ndarray:
    """Canny edges of a float picture [h, w, 3]. Returns bool [h, w].

    Source: Canny 1986; smoothing, thinning across the gradient, two thresholds with growth.
    """
    grey = ndimage.gaussian_filter(rgb @ picture.LUMINANCE, SMOOTH_PX)
    down, across = ndimage.sobel(grey, 0) / 4, ndimage.sobel(grey, 1) / 4
    strength = np.hypot(down, across)
    peak = _thin(strength, down, across)
    strong, weak = peak & (strength > HIGH / 2), peak & (strength > LOW / 2)
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    kept = np.unique(labels[strong])
    return np.isin(labels, kept[kept > 0])


def _thin(strength: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Keep a pixel that no neighbour across the edge exceeds."""
    sector = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(strength, 1)
    height, width = strength.shape
    peak = np.zeros_like(strength, bool)
    for number, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        peak |= (sector == number) & (strength >= ahead) & (strength > behind)
    return peak


def to_condition(rgb: np.ndarray) -> np.ndarray:
    """White lines on black, three channels, float [h, w, 3]."""
    return np.repeat(canny(rgb)[..., None], 3, -1).astype(np.float32)


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """F1 of two edge maps [h, w], edges within `REACH_PX` counting as met. Range 0..1."""
    if not found.any() or not wanted.any():
        return 0.0
    ball = np.hypot(*np.mgrid[-REACH_PX : REACH_PX + 1, -REACH_PX : REACH_PX + 1]) <= REACH_PX
    precision = (found & ndimage.binary_dilation(wanted, ball)).sum() / found.sum()
    recall = (wanted & ndimage.binary_dilation(found, ball)).sum() / wanted.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))
