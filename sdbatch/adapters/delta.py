"""What an adapter file does to one module: a form that is a function of the module's weight, and a change of its bias.

A form at strength s turns W into W + s * (F(W) - W), for every form: 0 is none, 1 as trained, and images of one batch may
have different strengths. F(W) - W is a sum of terms, each of which a hook can compute live without touching W.

Shapes: O out, I in, R rank, K the kernel (absent in linear layers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdbatch.errors import WeightFileError


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
    """[O, I], [O, I, K, K], or [O] for a norm."""


@dataclass(frozen=True, slots=True)
class Kronecker:
    """`first (x) second`: small factors whose product is large."""

    first: Tensor
    """[O1, I1]."""
    second: Tensor
    """[O2, I2] or [O2, I2, K, K], where O1 O2 = O and I1 I2 = I; the scale is in it."""


@dataclass(frozen=True, slots=True)
class OutputScale:
    """The rows of W times a factor."""

    factor: Tensor
    """[O]."""


@dataclass(frozen=True, slots=True)
class InputScale:
    """The columns of W times a factor."""

    factor: Tensor
    """[I]."""


Term = LowRank | Dense | Kronecker | OutputScale | InputScale


@dataclass(frozen=True, slots=True)
class Decomposed:
    """DoRA: m (W + D) / |W + D|, the norm over each output (axis 0) or each input (axis 1)."""

    inner: LowRank | Dense | Kronecker
    magnitude: Tensor
    """[O] or [I]."""
    axis: int


@dataclass(frozen=True, slots=True)
class Generalised:
    """GLoRA: W + scale (W a1 a2 + b1 b2)."""

    a1: Tensor
    """[I, R]."""
    a2: Tensor
    """[R, I], the scale in it."""
    plain: LowRank
    """`b1 b2`."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """OFT and BOFT: the outputs of W turned by orthogonal blocks, then scaled."""

    stages: Tensor
    """[stages, blocks, size, size]."""
    rescale: Tensor | None
    """[O]."""
    butterfly: bool
    """BOFT: each stage mixes outputs further apart than the one before."""


Form = Term | Decomposed | Generalised | Rotated

_CHUNK = 2**20
"""So many numbers of a weight are computed at a time: what stays in a processor's cache is neither written to memory nor read back."""

NAMES: dict[type, str] = {Decomposed: "DoRA", Generalised: "GLoRA", Rotated: "OFT", InputScale: "IA3", OutputScale: "IA3"}
"""What the forms that depend on W are called."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one file does to one module at strength 1."""

    form: Form | None = None
    bias: Tensor | None = None
    """[O]: added to the bias."""

    def terms(self, base: Tensor) -> tuple[Term, ...]:
        """What is added to a weight of that value, as terms."""
        return () if self.form is None else to_terms(self.form, base)

    def weight(self, base: Tensor) -> Tensor:
        """What is added to a weight of that value, whole and in float32: for baking."""
        total = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
        for term in self.terms(base):
            total += to_dense(term, base)
        return total


def to_terms(form: Form, base: Tensor) -> tuple[Term, ...]:
    """F(W) - W as a sum of terms."""
    match form:
        case Decomposed():
            return _decomposed(form, base)
        case Generalised():
            return _generalised(form, base)
        case Rotated():
            return (Dense(_rotate(form, base.float()) - base.float()),)
        case _:
            return (form,)


def to_dense(term: Term, base: Tensor) -> Tensor:
    """A term as a matrix of W's shape, float32."""
    match term:
        case LowRank(down, up):
            return (up.to(base.device).flatten(1) @ down.to(base.device).flatten(1)).reshape(base.shape)
        case Dense(weight):
            return weight.to(base.device).reshape(base.shape)
        case Kronecker():
            return kronecker_product(term).to(base.device).reshape(base.shape)
        case OutputScale(factor):
            return base.float() * _along(factor.to(base.device), 0, base.dim())
        case InputScale(factor):
            return base.float() * _along(factor.to(base.device), 1, base.dim())


def kronecker_product(term: Kronecker) -> Tensor:
    """The whole matrix of a Kronecker product."""
    first = term.first.reshape(*term.first.shape, *[1] * (term.second.dim() - 2))
    return torch.kron(first, term.second.contiguous())


def slice_rows(form: Form, start: int, stop: int) -> Form:
    """The part of a form that belongs to some outputs: files fuse layers that the model has one by one.

    Raises:
        WeightFileError: the form mixes outputs, so that it has no such part.
    """
    match form:
        case LowRank(down, up):
            return LowRank(down, up[start:stop])
        case Dense(weight):
            return Dense(weight[start:stop])
        case Kronecker():
            return Dense(kronecker_product(form)[start:stop])
        case Decomposed(inner, magnitude, 0):
            part = slice_rows(inner, start, stop)
            assert isinstance(part, LowRank | Dense), "a part of a plain term is one"
            return Decomposed(part, magnitude[start:stop], 0)
        case Generalised(a1, a2, plain):
            return Generalised(a1, a2, LowRank(plain.down, plain.up[start:stop]))
        case OutputScale(factor):
            return OutputScale(factor[start:stop])
        case InputScale():
            return form
        case _:
            raise WeightFileError(f"{NAMES[type(form)]} over a fused layer has no part of its own for each layer of the model")


def roll_rows(form: Form, count: int) -> Form:
    """The form with its outputs moved on by so many places, the last ones to the front.

    Raises:
        WeightFileError: the form mixes outputs.
    """
    rows = _count_rows(form)
    if rows is None:
        return form
    before, after = slice_rows(form, 0, rows - count), slice_rows(form, rows - count, rows)
    match after, before:
        case LowRank(down, late), LowRank(_, early):
            return LowRank(down, torch.cat([late, early]))
        case Dense(late), Dense(early):
            return Dense(torch.cat([late, early]))
        case OutputScale(late), OutputScale(early):
            return OutputScale(torch.cat([late, early]))
        case _:
            raise WeightFileError(f"{NAMES.get(type(form), 'this form')} over a layer whose outputs stand otherwise in the model")


def _count_rows(form: Form) -> int | None:
    """Outputs of a form; None for one that treats all alike."""
    match form:
        case LowRank(_, up):
            return up.shape[0]
        case Dense(weight):
            return weight.shape[0]
        case Kronecker(first, second):
            return first.shape[0] * second.shape[0]
        case OutputScale(factor):
            return factor.shape[0]
        case InputScale():
            return None
        case Decomposed(_, magnitude, _):
            return magnitude.shape[0]
        case Generalised(_, _, plain):
            return plain.up.shape[0]
        case Rotated(stages, _, _):
            return stages.shape[1] * stages.shape[2]


def _along(factor: Tensor, axis: int, dims: int) -> Tensor:
    return factor.reshape(*[1] * axis, -1, *[1] * (dims - axis - 1))


def _decomposed(form: Decomposed, base: Tensor) -> tuple[Term, ...]:
    factor = form.magnitude.to(base.device) / (_lengths(form.inner, form.axis, base) + torch.finfo(torch.float32).eps)
    scale = OutputScale(factor - 1) if form.axis == 0 else InputScale(factor - 1)
    return scale, _times(form.inner, factor, form.axis, base)


def _lengths(term: LowRank | Dense | Kronecker, axis: int, base: Tensor) -> Tensor:
    """|W + D| of each output (axis 0) or input, in float32; W + D is never whole where that can be."""
    across = [dim for dim in range(base.dim()) if dim != axis]
    if not isinstance(term, LowRank):
        return (base.float() + to_dense(term, base)).square_().sum(across).sqrt_()
    up, down = term.up.to(base.device).flatten(1), term.down.to(base.device).flatten(1)
    rows = max(1, _CHUNK // base[0].numel())
    squares = [
        torch.addmm(weight.float().flatten(1), some, down).square_().view(weight.shape).sum(across)
        for weight, some in zip(base.split(rows), up.split(rows), strict=True)
    ]
    return (torch.cat(squares) if axis == 0 else torch.stack(squares).sum(0)).sqrt_()


def _times(term: LowRank | Dense | Kronecker, factor: Tensor, axis: int, base: Tensor) -> Term:
    """A term with its rows or columns scaled."""
    if isinstance(term, LowRank):
        down, up = term.down.to(base.device), term.up.to(base.device)
        if axis == 0:
            return LowRank(down, up * _along(factor, 0, up.dim()))
        return LowRank(down * _along(factor, 1, down.dim()), up)
    return Dense(to_dense(term, base) * _along(factor, axis, base.dim()))


def _generalised(form: Generalised, base: Tensor) -> tuple[Term, ...]:
    a1, a2 = form.a1.to(base.device), form.a2.to(base.device)
    if base[0, 0].numel() == 1:
        return LowRank(a2.reshape(-1, *base.shape[1:]), base.float().flatten(1) @ a1), form.plain
    turned = torch.einsum("oi...,ij->oj...", base.float(), a1)
    return Dense(torch.einsum("oj...,jk->ok...", turned, a2)), form.plain


def _rotate(form: Rotated, weight: Tensor) -> Tensor:
    """Source: LyCORIS' diag-OFT and BOFT (arXiv 2306.07280, 2311.06243)."""
    for index, blocks in enumerate(form.stages.to(weight.device)):
        size = blocks.shape[-1]
        if not form.butterfly:
            weight = torch.einsum("knm,kn...->km...", blocks, weight.unflatten(0, (-1, size))).flatten(0, 1)
            continue
        stride = 2**index * (size // 2)
        weight = weight.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        weight = torch.einsum("bij,bj...->bi...", blocks, weight)
        weight = weight.flatten(0, 1).unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
    return weight if form.rescale is None else weight * _along(form.rescale.to(weight.device), 0, weight.dim())
