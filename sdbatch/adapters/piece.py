"""Tensors between a file's own form and diffusers': views where possible, so that nothing is read before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sdbatch.adapters.read import Tensors
from sdbatch.naming import Names, Piece

Turn = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _to_matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


def _to_convolution(tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if tensor.dim() == 2 else tensor


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.T


def _swap(tensor: Tensor) -> Tensor:
    """Shift and scale change places: FLUX and diffusers keep them in the other order."""
    return torch.cat(tensor.chunk(2)[::-1])


FORMS: dict[str, tuple[Turn, Turn]] = {
    # name         read        write
    "plain": (_same, _same),
    "conv": (_to_matrix, _to_convolution),
    "transposed": (_transpose, _transpose),
    "swapped": (_swap, _swap),
}
"""How a tensor of a single file becomes diffusers', and back."""


def split(piece: Piece, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors of diffusers within one tensor of a file, as views of it."""
    turned = FORMS[piece.form][0](tensor)
    if len(piece.names) == 1:
        return {piece.names[0]: turned}
    shares = piece.shares or (1,) * len(piece.names)
    unit = turned.shape[0] // sum(shares)
    return dict(zip(piece.names, turned.split([share * unit for share in shares]), strict=True))


def join(piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of a file from its tensors in diffusers, in the order of the piece's names."""
    return FORMS[piece.form][1](tensors[0] if len(tensors) == 1 else torch.cat(list(tensors)))


def join_all(pieces: Mapping[str, Piece], tensors: Mapping[str, Tensor]) -> Tensors:
    """Every tensor of a file, by its name there, from the tensors of diffusers."""
    return {name: join(piece, [tensors[part] for part in piece.names]) for name, piece in pieces.items()}


def read_component(state: Tensors, names: Names, *, is_denoiser: bool = False) -> Tensors:
    """The tensors of one component, in either spelling, under the names of its module.

    An unknown layer is kept, so that the module refuses it. What begins like no part of the component is left out (a schedule, a
    loss, the picture half of a CLIP); of a denoiser, whose files hold no such things, only what is no layer: a marker, a schedule.
    """
    found: Tensors = {}
    for key, tensor in state.items():
        if piece := names.read(key):
            found.update({name: part.contiguous() for name, part in split(piece, tensor).items()})
        elif key.partition(".")[0] in names.roots or (is_denoiser and "." in key):
            found[key] = tensor
    return found


def write_component(state: Tensors, names: Names) -> Tensors:
    """The tensors of one component under its original names."""
    written = [found for found in map(names.write, state) if found]
    return join_all(dict(written), state)
