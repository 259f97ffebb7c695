"""Textual-inversion embeddings: the vectors that stand for a word. They are injected, never added to the tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor

from sdbatch.adapters.read import read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError

_NAMES = ("emb_params", "string_to_param.*", "clip_l")
"""Where A1111, kohya and SDXL files keep them; other writers use the word itself as the only key."""


def load_embedding(file: WeightFile, width: int) -> Tensor:
    """The vectors of an embedding file: [vectors, width], float32.

    Raises:
        WeightFileError: no vectors in it, or of another width than the text encoder's.
    """
    tensors = read_tensors(file).tensors
    vectors = next((tensors[name] for name in _NAMES if name in tensors), None)
    if vectors is None:
        candidates = [tensor for tensor in tensors.values() if tensor.dim() in (1, 2) and tensor.is_floating_point()]
        vectors = candidates[0] if len(candidates) == 1 else None
    if vectors is None:
        shown = ", ".join(list(tensors)[:4]) or "no tensors"
        raise WeightFileError(f"embedding.{file.name}: no vectors found in it; it holds {shown}. Choose a textual-inversion file.")
    vectors = torch.atleast_2d(vectors.detach().float())
    if vectors.shape[-1] != width:
        raise WeightFileError(
            f"embedding.{file.name}: its vectors are {vectors.shape[-1]} wide, the model's text encoder {width}. "
            "It was made for another family; choose one of this family."
        )
    return vectors
