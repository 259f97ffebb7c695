"""Block weights: a ratio for each block of a UNet, as users of block-weighted merging write them.

A list has one number per block, IN00 to OUT11, 25 in all for SD 1.x and 2.x and 19 for SDXL; one more in front is BASE, the
ratio of everything outside of the blocks. A preset is a curve over the blocks, at the place of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.naming.block import find_blocks

CLASSIC = 25
"""Blocks of an SD 1.x UNet, for which the presets were drawn."""

Curve = Callable[[float], float]
"""From the place of a block (0 the first, 1 the last) to its ratio."""


def _steps(*runs: tuple[float, int]) -> Curve:
    """A curve of levels: (ratio, number of blocks of 25)."""
    levels = [level for level, count in runs for _ in range(count)]
    assert len(levels) == CLASSIC
    return lambda place: levels[round(place * (CLASSIC - 1))]


def _smooth(place: float) -> float:
    return place * place * (3 - 2 * place)


def _fold(value: float) -> float:
    """Up to 1 and down again: a triangle of period 2."""
    return 1 - abs(1 - value % 2)


def _hermite(place: float) -> float:
    return 0 if place == 0 else 77 / 12 * place**3 - 77 / 8 * place**2 + 25 / 6 * place + 1 / 24


def _fake_hermite(place: float) -> float:
    return 19 / 3 * place**3 - 19 / 2 * place**2 + 25 / 6 * place


def _times(count: int) -> Curve:
    return lambda place: _fold(count * _smooth(place))


def _over(count: int) -> Curve:
    return lambda place: _smooth(_fold(count * place))


def _reverse(curve: Curve) -> Curve:
    return lambda place: 1 - curve(place)


def _wrap(ends: int) -> Curve:
    return _steps((1, ends), (0, CLASSIC - 2 * ends), (1, ends))


_WAVES: dict[str, Curve] = {
    **{f"SMOOTHSTEP*{count}": _times(count) for count in (2, 3, 4)},
    **{f"SMOOTHSTEP/{count}": _over(count) for count in (2, 3, 4)},
}

PRESETS: dict[str, Curve] = {
    "GRAD_V": lambda place: abs(1 - 2 * place),
    "GRAD_A": lambda place: 1 - abs(1 - 2 * place),
    "FLAT_25": lambda place: 0.25,
    "FLAT_75": lambda place: 0.75,
    "WRAP08": _wrap(4),
    "WRAP12": _wrap(6),
    "WRAP14": _wrap(7),
    "WRAP16": _wrap(8),
    "MID12_50": _steps((0, 5), (0.5, 14), (0, 6)),
    "OUT07": _steps((0, 18), (1, 7)),
    "OUT12": _steps((0, 13), (1, 12)),
    "OUT12_5": _steps((0, 12), (0.5, 1), (1, 12)),
    "RING08_SOFT": _steps((0, 5), (0.5, 1), (1, 3), (0.5, 1), (0, 5), (0.5, 1), (1, 3), (0.5, 1), (0, 5)),
    "RING08_5": _steps((0, 6), (1, 4), (0, 5), (1, 4), (0, 6)),
    "RING10_5": _steps((0, 5), (1, 5), (0, 5), (1, 5), (0, 5)),
    "RING10_3": _steps((0, 6), (1, 5), (0, 3), (1, 5), (0, 6)),
    "SMOOTHSTEP": _smooth,
    "REVERSE-SMOOTHSTEP": _reverse(_smooth),
    **_WAVES,
    **{f"R_{name}": _reverse(curve) for name, curve in _WAVES.items()},
    "COSINE": lambda place: (1 + math.cos(math.pi * place)) / 2,
    "REVERSE_COSINE": lambda place: (1 - math.cos(math.pi * place)) / 2,
    "TRUE_CUBIC_HERMITE": _hermite,
    "TRUE_REVERSE_CUBIC_HERMITE": _reverse(_hermite),
    "FAKE_CUBIC_HERMITE": _fake_hermite,
    "FAKE_REVERSE_CUBIC_HERMITE": _reverse(_fake_hermite),
    "ALL_A": lambda place: 0.0,
    "ALL_B": lambda place: 1.0,
}
"""The presets of the block-weighted mergers for A1111, by the names and with the numbers that they have there."""


def read_blocks(asked: str | Sequence[float]) -> tuple[float, ...]:
    """The numbers of a preset name or a list, as text or numbers; a preset gives the classic 25.

    Raises:
        ConfigError: neither, with the nearest preset.
    """
    if not isinstance(asked, str):
        return tuple(float(number) for number in asked)
    if asked in PRESETS:
        return tuple(PRESETS[asked](index / (CLASSIC - 1)) for index in range(CLASSIC))
    try:
        numbers = tuple(float(number) for number in asked.strip("[]() ").split(","))
    except ValueError:
        raise ConfigError(f"{asked}: neither a preset of block weights nor a list of numbers. {did_you_mean(asked, PRESETS)}") from None
    if len(numbers) < 3 or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{asked}: block weights are a preset, or a list of one number per block: IN, middle, OUT.")
    return numbers


class Blocks:
    """The ratio of every tensor of one model, by the block it lies in.

    Raises:
        ConfigError: a list of another length than the model's blocks, unless it is the classic 25, which is stretched.
    """

    def __init__(self, weights: Sequence[float], base: float, names: Iterable[str]) -> None:
        self._places = _find_places(names)
        count = 1 + max(self._places.values())
        self.base = base
        if len(weights) in (count + 1, CLASSIC + 1):
            self.base, weights = weights[0], weights[1:]
        if len(weights) not in (count, CLASSIC):
            raise ConfigError(
                f"{len(weights)} block weights: this model has {count} blocks. Give {count} numbers (IN, middle, OUT), "
                f"{count + 1} with BASE in front, the {CLASSIC} of SD 1.x, or a preset such as GRAD_V."
            )
        self.weights = [_sample(weights, index / (count - 1)) for index in range(count)] if len(weights) != count else list(weights)

    def ratio(self, name: str) -> float:
        """The ratio of a tensor by its common name."""
        place = self._places.get(name)
        return self.base if place is None else self.weights[place]


def _find_places(names: Iterable[str]) -> dict[str, int]:
    """Tensor of the UNet -> the number of the block it lies in, IN00 being 0; none for those outside of all blocks."""
    unet = [name.removeprefix("unet.") for name in names if name.startswith("unet.")]
    labels = find_blocks(unet)
    inputs = len({label for label in labels.values() if label.startswith("IN")})
    if not inputs:
        raise ConfigError("block weights: this model has no UNet, so it has no such blocks. Leave them out.")
    start = {"IN": 0, "M": inputs, "OUT": inputs + 1}
    found = {name: start[label.rstrip("0123456789")] + int(label[-2:]) for name, label in labels.items()}
    # The last layers go with the last block, as in the mergers for A1111.
    found |= {name: 2 * inputs for name in unet if name.startswith(("conv_norm_out", "conv_out"))}
    return {f"unet.{name}": place for name, place in found.items()}


def _sample(weights: Sequence[float], place: float) -> float:
    """The curve through the weights at a place from 0 to 1, straight between two of them."""
    position = place * (len(weights) - 1)
    low = min(int(position), len(weights) - 2)
    return weights[low] + (weights[low + 1] - weights[low]) * (position - low)
