"""What a LoRA-like file adds to the weight of one module: a low-rank pair, or a whole matrix.

Shapes: O out, I in, R rank, K the kernel (absent in linear layers).

Sources: LoRA, W + (alpha / R) up down (arXiv 2106.09685); LoHa, (A1 B1) * (A2 B2) (arXiv 2108.06098);
LoKr, A (x) B (arXiv 2309.14859). The names of the tensors are those of kohya's and LyCORIS' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""The tensors of one module by their role: `down`, `up`, `mid`, `alpha`, `hada_w1_a`, ..."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """`up @ down`, the scale alpha / rank already in `up`."""

    down: Tensor
    """[R, I] or [R, I, K, K]."""
    up: Tensor
    """[O, R] or [O, R, 1, 1]."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A whole matrix, for forms whose product has full rank."""

    weight: Tensor
    """[O, I] or [O, I, K, K]."""


Delta = LowRank | Dense


def _scale(parts: Parts, rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def low_rank(parts: Parts) -> LowRank:
    """LoRA and LoCon; a Tucker core (`mid`) is folded into `down`."""
    down, up = parts["down"].float(), parts["up"].float()
    if "mid" in parts:
        mid = parts["mid"].float()
        down = torch.einsum("rskl,si->rikl", mid, down.flatten(1))
    return LowRank(down, up * _scale(parts, up.shape[1]))


def hadamard(parts: Parts) -> Dense:
    """LoHa: the element-wise product of two low-rank matrices."""
    rank = parts["hada_w1_b"].shape[0]
    first = _product(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    second = _product(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    return Dense(first * second * _scale(parts, rank))


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return a.float() @ b.float()
    return torch.einsum("ijkl,ip,jr->prkl", core.float(), a.float(), b.float())


def kronecker(parts: Parts) -> Dense:
    """LoKr: the Kronecker product of two matrices, either of which may be low-rank itself."""
    first = parts["lokr_w1"].float() if "lokr_w1" in parts else parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float()
    if "lokr_w2" in parts:
        second = parts["lokr_w2"].float()
    elif "lokr_t2" in parts:
        second = _product(parts["lokr_w2_a"], parts["lokr_w2_b"], parts["lokr_t2"])
    else:
        b = parts["lokr_w2_b"].float()
        second = (parts["lokr_w2_a"].float() @ b.flatten(1)).reshape(-1, *b.shape[1:])
    ranks = [parts[key].shape[0] for key in ("lokr_w2_b", "lokr_w1_b") if key in parts]
    scale = _scale(parts, ranks[0]) if ranks else 1.0  # two full factors have no rank, and their alpha means nothing
    for _ in range(second.dim() - 2):
        first = first.unsqueeze(-1)
    return Dense(torch.kron(first, second.contiguous()) * scale)


def difference(parts: Parts) -> Dense:
    """The plain difference of two weights."""
    return Dense(parts["diff"].float())


KINDS: tuple[tuple[str, frozenset[str], Callable[[Parts], Delta]], ...] = (
    ("LoRA", frozenset({"down", "up"}), low_rank),
    ("LoHa", frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), hadamard),
    ("LoKr", frozenset({"lokr_w1", "lokr_w2"}), kronecker),
    ("LoKr", frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}), kronecker),
    ("LoKr", frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), kronecker),
    ("LoKr", frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}), kronecker),
    ("difference", frozenset({"diff"}), difference),
)
"""Every form that can be applied: its name, the tensors it needs, what computes it. The first that fits is taken."""

UNSUPPORTED: dict[str, str] = {
    "dora_scale": "DoRA",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1": "GLoRA",
    "on_input": "IA3",
}
"""Tensors of forms that change the weight in another way. To ignore them would make a wrong image in silence."""


def find_kind(parts: Parts) -> Callable[[Parts], Delta] | None:
    """What computes the delta of these tensors, or None."""
    return next((build for _, needs, build in KINDS if needs <= parts.keys()), None)


def fit_to(delta: Delta, weight: torch.Size) -> Delta | None:
    """The delta with the number of dimensions of the weight it is added to; None when the sizes differ."""
    match delta:
        case LowRank(down, up):
            if up.shape[0] != weight[0] or down.shape[1] != weight[1] or up.flatten(1).shape[1] != down.shape[0]:
                return None
            if down.flatten(1).shape[1] != weight[1:].numel():
                return None
            rank = down.shape[0]
            return LowRank(down.reshape(rank, *weight[1:]), up.reshape(weight[0], rank))
        case Dense(matrix):
            return Dense(matrix.reshape(weight)) if matrix.numel() == weight.numel() and matrix.shape[0] == weight[0] else None
