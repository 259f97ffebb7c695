"""Weight files from strangers: nothing in them runs, and damage is named."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from sdbatch.adapters.read import read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from tests.pipeline.models import save


def as_file(path: Path) -> WeightFile:
    return WeightFile(path.stem, str(path), path.stem)


class _Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_pickle_never_runs(suffix: str, tmp_path: Path) -> None:
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "marker"
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": _Trap(marker)}, path)
    with pytest.raises(WeightFileError, match="holds code, which is never run"):
        read_tensors(as_file(path))
    path.write_bytes(pickle.dumps(_Trap(marker)))
    with pytest.raises(WeightFileError):
        read_tensors(as_file(path))
    assert not marker.exists()


def test_a_nested_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    assert list(read_tensors(as_file(tmp_path / "a.ckpt")).tensors) == ["w"]


def test_damage_is_named(tmp_path: Path) -> None:
    whole = save({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    path = Path(whole.path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightFileError, match="cannot be read as safetensors"):
        read_tensors(whole)
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(WeightFileError, match="cannot be read as safetensors"):
        read_tensors(whole)
    with pytest.raises(WeightFileError, match="is not there"):
        read_tensors(as_file(tmp_path / "absent.safetensors"))
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(WeightFileError, match="is no weight file"):
        read_tensors(as_file(tmp_path / "a.txt"))
