"""The part of the steps in which an adapter acts on each image of a batch."""

from __future__ import annotations

from collections.abc import Sequence


def weights_at(when: tuple[int, int], weights: Sequence[float], windows: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """The weight of each image at a step: 0 outside its window.

    Args:
        when: (step, steps).
        weights: Of each image.
        windows: (start, end) of each image, as shares of all steps.
    """
    step, steps = when
    return tuple(
        weight if step / steps >= start and (step + 1) / steps <= end else 0.0
        for weight, (start, end) in zip(weights, windows, strict=True)
    )
