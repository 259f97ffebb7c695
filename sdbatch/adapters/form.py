"""From the tensors that a file has for one module to the form they stand for: one table, read top to bottom.

Sources: LoRA, W + (alpha / R) up down (arXiv 2106.09685); LoHa, (A1 B1) * (A2 B2) (arXiv 2108.06098); LoKr, A (x) B (arXiv
2309.14859); DoRA (arXiv 2402.09353); IA3 (arXiv 2205.05638); GLoRA (arXiv 2306.07967). The names of the tensors are those of
kohya's and LyCORIS' files.

Shapes: as in `delta`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sdbatch.adapters.delta import Decomposed, Delta, Dense, Form, Generalised, InputScale, Kronecker, LowRank, OutputScale, Rotated
from sdbatch.errors import WeightFileError

Parts = Mapping[str, Tensor]
"""The tensors of one module by their role: `down`, `up`, `mid`, `alpha`, `hada_w1_a`, ..."""

Shape = Sequence[int]
"""Of the weight that is changed: [O, I], [O, I, K, K], or [O] for a norm."""


def build_delta(parts: Parts, shape: Shape) -> Delta:
    """What the tensors do to a module whose weight has that shape.

    Raises:
        WeightFileError: they are no complete form, of a form that cannot be applied, or do not fit each other or the weight.
    """
    for role, name in UNSUPPORTED.items():
        if role in parts:
            raise WeightFileError(f"is {name}, which cannot be applied. {_APPLICABLE}")
    build = next((build for needs, build in FORMS if needs <= parts.keys()), None)
    bias = next((parts[role].float().flatten() for role in ("diff_b", "b_norm") if role in parts), None)
    if "up_bias" in parts and "up" in parts:
        bias = parts["up_bias"].float().flatten() * _scale(parts, parts["up"].shape[1])
    if build is None and bias is None:
        raise WeightFileError(f"has {', '.join(sorted(parts))}, which is no complete LoRA. {_APPLICABLE}")
    try:
        form = build(parts, shape) if build else None
    except (RuntimeError, IndexError) as error:
        raise _misfit(parts, shape) from error
    if form is not None and ("dora_scale" in parts or "magnitude" in parts):
        form = _decompose(form, parts, shape)
    is_norm = len(shape) == 1  # which has differences alone
    if not _fits(form, shape) or (is_norm and not isinstance(form, Dense | None)) or (bias is not None and bias.shape[0] != shape[0]):
        raise _misfit(parts, shape)
    return Delta(form, bias)


def _misfit(parts: Parts, shape: Shape) -> WeightFileError:
    found = " and ".join(str(list(part.shape)) for role, part in parts.items() if role != "alpha")
    return WeightFileError(
        f"has tensors of shape {found}, which do not fit each other or the model's weight there, which is {list(shape)}. "
        "It was made for another family, or is damaged; choose a LoRA of this family."
    )


def _scale(parts: Parts, rank: int) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _low_rank(parts: Parts, shape: Shape) -> LowRank:
    """LoRA, LoCon and DyLoRA; a Tucker core (`mid`) is folded into `down`."""
    down, up = parts["down"].float(), parts["up"].float()
    if "mid" in parts:
        down = torch.einsum("rskl,si->rikl", parts["mid"].float(), down.flatten(1))
    rank = down.shape[0]
    return LowRank(down.reshape(rank, *shape[1:]), up.reshape(-1, rank) * _scale(parts, rank))


def _hadamard(parts: Parts, shape: Shape) -> LowRank | Dense:
    """LoHa: the element-wise product of two low-rank matrices, which is one of rank R squared: kept so where that is smaller."""
    a1, b1, a2, b2 = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    rank, sides = b1.shape[0] ** 2, (a1.shape[0], b1[0].numel())
    if "hada_t1" not in parts and rank * sum(sides) < sides[0] * sides[1]:
        up = (a1.float()[:, :, None] * a2.float()[:, None, :]).reshape(-1, rank)
        down = (b1.float().flatten(1)[:, None] * b2.float().flatten(1)[None]).reshape(rank, *shape[1:])
        return LowRank(down, up * _scale(parts, b1.shape[0]))
    first = _product(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    second = _product(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    return Dense((first * second * _scale(parts, parts["hada_w1_b"].shape[0])).reshape(*shape))


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return a.float().flatten(1) @ b.float().flatten(1)  # OneTrainer writes those of convolutions with four dimensions
    return torch.einsum("ijkl,ip,jr->prkl", core.float(), a.float(), b.float())


def _kronecker(parts: Parts, shape: Shape) -> Form:
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
    # LyCORIS writes the low-rank factor of a convolution with two dimensions, other trainers with four.
    second = second.reshape(shape[0] // first.shape[0], shape[1] // first.shape[1], *shape[2:])
    return Kronecker(first, second * scale)


def _difference(parts: Parts, shape: Shape) -> Dense:
    """The plain difference of two weights."""
    return Dense(parts.get("diff", parts.get("w_norm", torch.empty(0))).float().reshape(*shape))


def _scaled(parts: Parts, shape: Shape) -> Form:
    """IA3: a factor for each input or output."""
    factor = parts["ia3"].float().flatten()
    return InputScale(factor) if bool(parts["on_input"]) else OutputScale(factor)


def _generalised(parts: Parts, shape: Shape) -> Generalised:
    """GLoRA; in older files the two factors of each pair have changed names."""
    a1, a2, b1, b2 = (parts[name].float() for name in ("a1", "a2", "b1", "b2"))
    if a1.shape[0] != shape[1]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    rank = a2.shape[0]
    scale = _scale(parts, rank)
    plain = LowRank(b2.reshape(rank, *shape[1:]), b1.flatten(1) * scale)
    return Generalised(a1.flatten(1), a2.flatten(1) * scale, plain)


def _rotated(parts: Parts, shape: Shape) -> Rotated:
    """OFT and BOFT: orthogonal blocks by Cayley's transform; alpha bounds how far they turn."""
    blocks = parts["oft_blocks"].float()
    skew = blocks - blocks.transpose(-1, -2)
    bound = float(parts["alpha"]) * shape[0] if "alpha" in parts else 0.0
    norm = float(skew.norm()) + 1e-8
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    identity = torch.eye(skew.shape[-1])
    turns = (identity + skew) @ torch.linalg.inv(identity - skew)
    is_butterfly = turns.dim() == 4
    rescale = parts["rescale"].float().flatten() if "rescale" in parts else None
    return Rotated(turns if is_butterfly else turns[None], rescale, is_butterfly)


def _decompose(form: Form, parts: Parts, shape: Shape) -> Decomposed:
    if not isinstance(form, LowRank | Dense | Kronecker):
        raise WeightFileError(f"is DoRA over another form than LoRA, LoHa and LoKr, which cannot be applied. {_APPLICABLE}")
    if "magnitude" in parts:  # peft's: always of the outputs
        return Decomposed(form, parts["magnitude"].float().flatten(), 0)
    magnitude = parts["dora_scale"].float()
    is_input = magnitude.dim() > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == shape[1]
    return Decomposed(form, magnitude.flatten(), 1 if is_input else 0)


def _fits(form: Form | None, shape: Shape) -> bool:
    """Whether a form is one of a weight of that shape."""
    match form:
        case None:
            return True
        case LowRank(down, up):
            return up.shape[0] == shape[0] and list(down.shape[1:]) == list(shape[1:])
        case Dense(weight):
            return list(weight.shape) == list(shape)
        case Kronecker(first, second):
            sides = [first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:]]
            return sides == list(shape)
        case OutputScale(factor):
            return factor.shape[0] == shape[0]
        case InputScale(factor):
            return factor.shape[0] == shape[1]
        case Decomposed(inner, magnitude, axis):
            return _fits(inner, shape) and magnitude.shape[0] == shape[axis]
        case Generalised(a1, a2, plain):
            return _fits(plain, shape) and a1.shape[0] == a2.shape[1] == shape[1]
        case Rotated(stages, rescale, _):
            return stages.shape[1] * stages.shape[2] == shape[0] and (rescale is None or rescale.shape[0] == shape[0])


FORMS: tuple[tuple[frozenset[str], Callable[[Parts, Shape], Form]], ...] = (
    (frozenset({"down", "up"}), _low_rank),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), _hadamard),
    (frozenset({"lokr_w1", "lokr_w2"}), _kronecker),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}), _kronecker),
    (frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), _kronecker),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}), _kronecker),
    (frozenset({"diff"}), _difference),
    (frozenset({"w_norm"}), _difference),
    (frozenset({"ia3", "on_input"}), _scaled),
    (frozenset({"a1", "a2", "b1", "b2"}), _generalised),
    (frozenset({"oft_blocks"}), _rotated),
)
"""Every form that can be applied: the tensors it needs, what builds it. The first that fits is taken."""

UNSUPPORTED: dict[str, str] = {
    "oft_diag": "kohya's OFT of 2023",
    "oft_R": "peft's OFT",
    "boft_R": "peft's BOFT",
    "bm": "GLoRA with a Tucker core",
    "vera_lambda_b": "VeRA",
    "lambda_layer": "LyCORIS' T-LoRA",
    "set_weight": "a replacement of whole weights",
}
"""Tensors of forms that change the weight in another way. To ignore them would make a wrong image in silence."""

_APPLICABLE = "Use LoRA, LoCon, LoHa, LoKr, DyLoRA, DoRA, IA3, GLoRA, OFT, BOFT or differences."
