from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdbatch.adapters.canny import draw_edges


def test_a_square_has_a_thin_closed_edge() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 255
    edges = draw_edges(pixels)[:, :, 0] > 0
    assert not edges[13:27, 13:27].any()
    assert not edges[:8].any()
    assert all(1 <= edges[row, :20].sum() <= 2 for row in range(12, 28)), "one line, not a band"
    assert 70 <= edges.sum() <= 90
    assert set(np.unique(draw_edges(pixels))) == {0, 255}


def test_weak_edges_count_only_next_to_strong_ones() -> None:
    faint = np.zeros((20, 40, 3), np.uint8)
    faint[:, 20:] = 35  # |gradient| 140: between the thresholds
    assert not draw_edges(faint).any()
    faint[5:8, 20:] = 255
    found: npt.NDArray[np.bool_] = np.any(draw_edges(faint)[:, 18:22, 0] > 0, axis=1)
    assert found[:4].all(), "the weak line hangs on the strong part"


def test_one_colour_and_noise_free_input_shapes() -> None:
    assert not draw_edges(np.full((7, 9, 3), 200, np.uint8)).any()
    assert draw_edges(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


def test_the_strongest_channel_decides() -> None:
    pixels = np.full((20, 20, 3), 100, np.uint8)
    pixels[:, 10:, 2] = 250
    assert (draw_edges(pixels)[:, :, 0] > 0).any(axis=1).all()
