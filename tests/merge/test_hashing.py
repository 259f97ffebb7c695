"""Hashes of sources that are computed beside the merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.cell import Merge, WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.merge.checkpoint import Order, make_checkpoint
from sdbatch.merge.convert import Change, convert
from sdbatch.merge.hashing import LaterHasher
from sdbatch.weights.hashes import Hasher
from tests.merge.conftest import quiet


def late(file: WeightFile, hasher: LaterHasher) -> WeightFile:
    return WeightFile(file.name, file.path, hasher.sha256(Path(file.path)))


def test_the_file_says_hashes_that_came_late(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    hasher = LaterHasher(tmp_path / "cache")
    first, other = late(tiny, hasher), late(pastel, hasher)
    assert len({first.sha256, other.sha256, tiny.sha256, pastel.sha256}) == 4, "nothing is known yet"
    for folder, a, b in (("late", first, other), ("known", tiny, pastel)):
        make_checkpoint(Order(a, tmp_path / folder / "new.safetensors", Merge(b)), quiet, hasher.settle)
    assert (tmp_path / "late/new.safetensors").read_bytes() == (tmp_path / "known/new.safetensors").read_bytes()
    assert late(tiny, LaterHasher(tmp_path / "cache")) == tiny, "it is remembered, as by a plain one"


def test_of_a_folder_too(tiny: WeightFile, tmp_path: Path) -> None:
    convert(Change(tiny, tmp_path / "folder"), quiet)
    hasher = LaterHasher(tmp_path / "cache")
    assert hasher.settle(hasher.sha256(tmp_path / "folder")) == Hasher().sha256(tmp_path / "folder")


def test_what_cannot_be_hashed_leaves_no_file(tiny: WeightFile, pastel: WeightFile, tmp_path: Path) -> None:
    hasher = LaterHasher(tmp_path / "cache")
    gone = hasher.sha256(tmp_path / "gone.safetensors")
    with pytest.raises(WeightFileError, match=r"gone\.safetensors"):
        make_checkpoint(Order(tiny, tmp_path / "new.safetensors", Merge(WeightFile("b", pastel.path, gone))), quiet, hasher.settle)
    assert list(tmp_path.glob("*new*")) == []
