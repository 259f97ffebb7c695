"""A safetensors file is mapped by its header: the tensors are those that the library reads, and no copy of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdbatch.adapters.mapping import DTYPES
from sdbatch.adapters.read import map_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.header import DTYPE_BITS


def as_file(path: Path) -> WeightFile:
    return WeightFile(path.stem, str(path), path.stem)


def write(path: Path, header: dict[str, object], data: bytes, padding: str = "") -> Path:
    text = (json.dumps(header) + padding).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", DTYPES.keys() - {"C128"})  # which the library lacks
def test_each_dtype_is_what_the_library_reads(name: str, tmp_path: Path) -> None:
    values = torch.randint(0, 2 if name == "BOOL" else 100, (24 * DTYPES[name].itemsize,), dtype=torch.uint8)
    tensors = {
        "b": values.view(DTYPES[name]).view(2, 3, 4),
        "a": values[: DTYPES[name].itemsize].clone().view(DTYPES[name]).view(()),
        "none": torch.empty(0, 3, dtype=DTYPES[name]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    found, wanted = map_tensors(as_file(path)).tensors, load_file(path)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert found[key].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_what_torch_cannot_compute_with_is_refused_by_name(tmp_path: Path) -> None:
    for name in DTYPE_BITS.keys() - DTYPES.keys():
        path = write(
            tmp_path / f"{name}.safetensors",
            {"w": {"dtype": name, "shape": [8], "data_offsets": [0, DTYPE_BITS[name]]}},
            bytes(DTYPE_BITS[name]),
        )
        with pytest.raises(WeightFileError, match=f"its tensor w holds {name}, with which torch cannot compute"):
            map_tensors(as_file(path))


@pytest.mark.parametrize("padding", range(8))
def test_tensors_may_begin_anywhere(padding: int, tmp_path: Path) -> None:
    header: dict[str, object] = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    path = write(tmp_path / "x.safetensors", header, torch.tensor([1.5, -2.0]).numpy().tobytes(), " " * padding)
    tensor = map_tensors(as_file(path)).tensors["w"]
    assert tensor.tolist() == [1.5, -2.0]
    assert (tensor @ tensor).item() == 6.25


def test_tensors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    header: dict[str, object] = {
        "last": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
        "first": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    path = write(tmp_path / "x.safetensors", header, b"\1\2")
    assert list(map_tensors(as_file(path)).tensors) == ["first", "last"]


def test_nothing_is_copied_and_the_file_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(5000)}, path)
    before = path.read_bytes()
    tensor = map_tensors(as_file(path)).tensors["w"]
    with path.open("r+b") as file:
        file.seek(len(before) - 4)
        file.write(torch.tensor([7.0]).numpy().tobytes())
    assert tensor[-1] == 7, "no second copy lies in memory"
    tensor[0] = 3
    assert load_file(path)["w"][0] == 1


def test_what_lies_where_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3), "b": torch.arange(4.0)}, path)
    found = map_tensors(as_file(path))
    assert found.mapped is not None
    begin = found.tensors["b"].data_ptr() - found.mapped[1]
    assert path.read_bytes()[begin : begin + 16] == torch.arange(4.0).numpy().tobytes()
