"""Python values to Arrow without pandas."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from sdbatch.results.arrow import plain_values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 0, 2**62, -5], pa.int64()),
        ([0.1, None, float("inf"), -0.0], pa.float64()),
        ([True, None, False] * 5, pa.bool_()),
        (["a, b", None, "", "ü€😀"], pa.string()),
        (["no null"], pa.string()),
        ([], pa.float64()),
    ],
)
def test_plain_values_come_back(values: list[Any], kind: Any) -> None:
    made = plain_values(values, kind)
    made.validate(full=True)
    assert made.type == kind
    assert made.to_pylist() == values


def test_an_integer_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        plain_values([2**64], pa.int64())
