"""Weight files from strangers: nothing in them runs, and damage is named."""

from __future__ import annotations

import pickle
import zipfile
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
    with pytest.raises(WeightFileError, match=r"pickle asks to import .*pathlib\.Path.*; not loaded"):
        read_tensors(as_file(path))
    path.write_bytes(pickle.dumps(_Trap(marker)))
    with pytest.raises(WeightFileError):
        read_tensors(as_file(path))
    assert not marker.exists()


def test_a_nested_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    assert list(read_tensors(as_file(tmp_path / "a.ckpt")).tensors) == ["w"]


def test_the_header_decides_not_the_name(tmp_path: Path) -> None:
    whole = save({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    renamed = Path(whole.path).rename(tmp_path / "a.sft")
    assert torch.equal(read_tensors(as_file(renamed)).tensors["w"], torch.ones(100))
    torch.save({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(WeightFileError, match="is a pickle, not safetensors"):
        read_tensors(as_file(tmp_path / "b.safetensors"))


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00." + b"\0" * 100_000_000)
    with pytest.raises(WeightFileError):
        read_tensors(as_file(tmp_path / "bomb.pt"))


def test_the_tensors_of_an_archive_are_mapped(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "a.pt")
    tensor = read_tensors(as_file(tmp_path / "a.pt")).tensors["w"]
    with (tmp_path / "a.pt").open("r+b") as file:
        content = file.read()
        file.seek(content.index(torch.ones(4).numpy().tobytes()))
        file.write(torch.full((1000,), 2.0).numpy().tobytes())
    assert tensor[0] == 2.0, "no second copy lies in memory"


def test_damage_is_named(tmp_path: Path) -> None:
    whole = save({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    path = Path(whole.path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightFileError, match="truncated download"):
        read_tensors(whole)
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(WeightFileError, match="is an HTML page"):
        read_tensors(whole)
    with pytest.raises(WeightFileError, match="there is no such file"):
        read_tensors(as_file(tmp_path / "absent.safetensors"))
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(WeightFileError, match="is a text, not a weight file"):
        read_tensors(as_file(tmp_path / "a.txt"))
