"""Weights that are no numbers are refused by name, in every number format, for the price of reading them (case 22)."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdbatch.adapters import read
from sdbatch.adapters.finite import is_finite
from sdbatch.adapters.hypernetwork import load_hypernetwork
from sdbatch.adapters.read import read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError

FORMATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_is_found(dtype: torch.dtype, bad: float) -> None:
    values = torch.linspace(-400, 400, 1000)
    assert is_finite(values.to(dtype))
    values[567] = bad
    # The one format without infinity keeps its largest number instead.
    assert is_finite(values.to(dtype)) == (dtype is torch.float8_e4m3fn and math.isinf(bad))


def test_what_has_no_such_values() -> None:
    for tensor in (
        torch.arange(5),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.bool),
        torch.finfo(torch.float16).max * torch.ones(3).half(),
    ):
        assert is_finite(tensor)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_with_nan_is_refused_when_it_is_read(tmp_path: Path, suffix: str) -> None:
    tensors = {"good": torch.ones(3), "bad.weight": torch.tensor([1.0, float("nan")]), "worse": torch.tensor([float("inf")])}
    path = tmp_path / f"x{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with pytest.raises(WeightFileError, match=r"mine \(x\..*\): tensor bad\.weight and 1 more of 3 holds values that are no numbers"):
        read_tensors(WeightFile("mine", str(path), ""))


def test_a_hypernetwork_with_nan_is_refused(tmp_path: Path) -> None:
    layer = {"linear.0.weight": torch.ones(4, 4), "linear.0.bias": torch.tensor([0, 0, 0, float("nan")])}
    torch.save({32: [layer, layer]}, tmp_path / "x.pt")
    with pytest.raises(WeightFileError, match=r"hypernetwork\.mine: tensor linear\.0\.bias of 2 holds values that are no numbers"):
        load_hypernetwork(WeightFile("mine", str(tmp_path / "x.pt"), ""))


def settle(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 100 * 10**9))


def test_a_file_is_looked_at_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, path)
    settle(path)
    looked: list[str] = []

    def note(_: object, what: str) -> None:
        looked.append(what)

    monkeypatch.setattr(read, "refuse_not_finite", note)
    for _ in range(3):
        assert read_tensors(WeightFile("mine", str(path), "")).tensors["a"].tolist() == [1, 1, 1]
    assert looked == ["mine (x.safetensors)"]
    save_file({"a": torch.ones(4)}, path)
    settle(path)
    read_tensors(WeightFile("mine", str(path), ""))
    assert len(looked) == 2


def test_what_was_refused_is_refused_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.tensor([math.nan])}, path)
    settle(path)
    for _ in range(2):
        with pytest.raises(WeightFileError, match="no numbers"):
            read_tensors(WeightFile("mine", str(path), ""))


def test_it_costs_less_than_a_second_a_gigabyte() -> None:
    """Measured: 0.05 s."""
    tensor = torch.zeros(50_000_000, dtype=torch.float16)
    start = time.process_time()
    assert is_finite(tensor)
    assert (time.process_time() - start) / 0.1 < 1
