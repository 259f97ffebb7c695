"""Full-size tests take minutes and gigabytes: they run only when asked for, `pytest -m full`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip them unless the marker is named."""
    if "full" in str(config.getoption("markexpr")):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="full-size: pytest -m full tests/full"))
