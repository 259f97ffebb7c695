from __future__ import annotations

import pytest

from sdbatch.results.pace import Pace

YEAR_S = 31_536_000


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(0, 4)], None),
        ([(5, 4), (5, 4)], None),
        ([(0, 4), (2, 4), (4, 2)], 1.5),
        ([(4, 2), (0, 4), (2, 4)], 1.5),
        ([(-YEAR_S, 999), (0, 4), (2, 4)], 2.0),
        ([(0, 4), (2, 4), (-YEAR_S, 4), (2 - YEAR_S, 4)], 2.0),
        ([(0, 4), (301, 4), (303, 4)], 2.0),
    ],
    ids=["one", "a clock that stands", "each after the first", "in any order", "set ahead", "set back", "of late"],
)
def test_the_pace_is_that_from_the_first_to_the_last_of_late(parts: list[tuple[int, int]], expected: float | None) -> None:
    pace = Pace()
    for made_s, images in parts:
        pace.add(made_s * 1_000_000, images)
    assert pace.images_per_s() == expected
