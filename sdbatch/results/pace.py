"""How fast a worker is, by its own clock alone: no other needs to agree with it, and it need not be right."""

from __future__ import annotations

from array import array

import numpy as np

RECENT_S = 300.0
"""The pace is that of this time before the latest part."""


class Pace:
    """When a worker made its parts, and of how many images."""

    def __init__(self) -> None:
        self._made_us = array("q")
        self._images = array("q")

    def add(self, made_us: int, images: int) -> None:
        """Count in a part by the time of its last image."""
        self._made_us.append(made_us)
        self._images.append(images)

    def images_per_s(self) -> float | None:
        """From one part to the last, of late; None where there is but one, or the clock stood."""
        made_us, images = np.array(self._made_us), np.array(self._images)
        recent = made_us > made_us.max() - int(RECENT_S * 1e6)
        made_us, images = made_us[recent], images[recent]
        span_s = float(made_us.max() - made_us.min()) / 1e6
        return float(images.sum() - images[made_us.argmin()]) / span_s if span_s else None
