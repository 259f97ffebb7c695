"""A sweep folder with some committed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sdbatch.results.commit import commit_block
from sdbatch.results.folder import SweepFolder
from sdbatch.results.writer import Outcome, record
from tests.results.samples import ORIGIN, make_picture

Fill = Callable[[Sequence[Sequence[Outcome]]], SweepFolder]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A new, empty sweep folder."""
    made = SweepFolder(tmp_path / "sweep")
    made.create()
    return made


@pytest.fixture
def fill(folder: SweepFolder) -> Fill:
    """Commits outcomes to the folder, a block for each list, all in shard 0."""

    def commit(blocks: Sequence[Sequence[Outcome]]) -> SweepFolder:
        for outcomes in blocks:
            rows, images = record(folder, ORIGIN, outcomes, room=100)
            commit_block(folder, (0, folder.next_block(0)), rows, images)
        return folder

    return commit


@pytest.fixture
def sweep(fill: Fill) -> SweepFolder:
    """Six images in three blocks."""
    return fill([[make_picture(2 * block), make_picture(2 * block + 1)] for block in range(3)])
