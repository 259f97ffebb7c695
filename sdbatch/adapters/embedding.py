"""Textual-inversion embeddings: the vectors that stand for a word. They are injected, never added to the tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdbatch.adapters.read import Tensors, read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError
from sdbatch.weights.catalog import to_option_name

_NAMES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("emb_params", "string_to_param.*", "clip_l", "text_encoders_0"),
    "text_encoder_2": ("clip_g", "text_encoders_1", "t5xxl", "t5"),
}
"""Where files keep the vectors of each text encoder; some use the word itself as the only key."""
_KNOWN = frozenset(name for names in _NAMES.values() for name in names)


def embedding_words(file: WeightFile) -> tuple[str, ...]:
    """The words that call an embedding: its option name, and its file's own name where that is another spelling of it.

    Option names have no dots and spaces, so `bad_hands_v1.3.pt` is `embedding=bad_hands_v1_3`, and prompts may say either.
    """
    stem = Path(file.path).stem
    return (file.name, stem) if stem != file.name and to_option_name(stem) == file.name else (file.name,)


def load_embedding(file: WeightFile, widths: Mapping[str, int], optional: Collection[str] = ()) -> dict[str, Tensor]:
    """The vectors of an embedding file for each text encoder: component -> [vectors, C], float32.

    Args:
        file: The embedding.
        widths: Component -> C, the width of its tokens.
        optional: Components that it need not have vectors for: FLUX.1's T5.

    Raises:
        WeightFileError: no vectors in it, or of another width than a text encoder's.
    """
    tensors = read_tensors(file).tensors
    found: dict[str, Tensor] = {}
    for component, width in widths.items():
        vectors = _find_vectors(tensors, component, width)
        if vectors is not None and vectors.shape[-1] == width:
            found[component] = vectors
        elif component not in optional:
            raise WeightFileError(f"embedding.{file.name}: {_misfit(tensors, vectors, width)}")
    return found


def _find_vectors(tensors: Tensors, component: str, width: int) -> Tensor | None:
    vectors = next((tensors[name] for name in _NAMES[component] if name in tensors), None)
    if vectors is None:
        unnamed = [tensor for name, tensor in tensors.items() if name not in _KNOWN]
        found = [tensor for tensor in unnamed if tensor.dim() in (1, 2) and tensor.is_floating_point()]
        fitting = [tensor for tensor in found if tensor.shape[-1] == width]
        vectors = next((some[0] for some in (fitting, found) if len(some) == 1), None)
    return None if vectors is None else torch.atleast_2d(vectors.detach().float())


def _misfit(tensors: Tensors, vectors: Tensor | None, width: int) -> str:
    if vectors is None:
        shown = ", ".join(list(tensors)[:4]) or "no tensors"
        return f"no vectors found in it; it holds {shown}. Choose a textual-inversion file."
    return (
        f"its vectors are {vectors.shape[-1]} wide, the model's text encoder {width}. "
        "It was made for another family; choose one of this family."
    )
