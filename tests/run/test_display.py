"""The live display on terminals of any width."""

from __future__ import annotations

import pytest

from sdbatch.run.display import LiveWatcher
from sdbatch.run.supervisor import Tally


@pytest.mark.parametrize("columns", [24, 60, 120])
def test_the_head_of_the_display_is_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    watcher = LiveWatcher("a_sweep_with_a_name")
    with watcher._live.console.capture() as shown:  # pyright: ignore[reportPrivateUsage]
        watcher._live.console.print(watcher._picture(Tally(1000, made=160, failed=2), []))  # pyright: ignore[reportPrivateUsage]
    watcher._live.stop()  # pyright: ignore[reportPrivateUsage]
    lines = [line for line in shown.get().splitlines() if line.strip()]
    assert len(lines) == 1
    assert len(lines[0]) <= columns
    if columns >= 60:
        assert "162/1000 images" in lines[0]
