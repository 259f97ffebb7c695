from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdbatch.adapters.embedding import load_embedding
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from tests.pipeline.models import save

WIDTHS = {"text_encoder": 8}


def as_file(path: Path) -> WeightFile:
    return WeightFile(path.stem, str(path), path.stem)


def test_every_writer_s_layout(tmp_path: Path) -> None:
    vectors = torch.randn(3, 8)
    files = [
        save({"emb_params": vectors}, tmp_path / "a.safetensors"),
        save({"<word>": vectors}, tmp_path / "b.safetensors"),
        save({"clip_l": vectors, "clip_g": torch.randn(3, 16)}, tmp_path / "c.safetensors"),
    ]
    torch.save({"string_to_param": {"*": torch.nn.Parameter(vectors)}, "name": "d"}, tmp_path / "d.pt")
    torch.save({"<word>": vectors}, tmp_path / "e.bin")
    for file in [*files, as_file(tmp_path / "d.pt"), as_file(tmp_path / "e.bin")]:
        assert torch.equal(load_embedding(file, WIDTHS)["text_encoder"], vectors), file.name


def test_one_vector_and_half_precision(tmp_path: Path) -> None:
    loaded = load_embedding(save({"w": torch.ones(8).half()}, tmp_path / "a.safetensors"), WIDTHS)["text_encoder"]
    assert loaded.shape == (1, 8)
    assert loaded.dtype is torch.float32


def test_another_width_and_no_vectors(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"embedding\.wide: its vectors are 16 wide, the model's text encoder 8"):
        load_embedding(save({"emb_params": torch.ones(1, 16)}, tmp_path / "wide.safetensors"), WIDTHS)
    with pytest.raises(WeightFileError, match="no vectors found in it; it holds a, b"):
        load_embedding(save({"a": torch.ones(1, 8), "b": torch.ones(1, 8)}, tmp_path / "two.safetensors"), WIDTHS)
