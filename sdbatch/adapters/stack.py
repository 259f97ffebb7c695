"""The adapters of a recipe on one component: live hooks, taken off without a trace.

A hook adds `strength * term(x)` to what its module returns, for each term of each adapter. The strength is a vector over
the batch, so one denoising batch may hold different strengths; all low-rank terms of a stack lie side by side along the
rank, so one pair of products serves them all. Changing strengths touches no weight.

Shapes: B batch, T tokens, I in, O out, R rank over the whole stack, L adapters, K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sdbatch.adapters.delta import Delta, Dense, InputScale, Kronecker, LowRank, OutputScale, Term
from sdbatch.adapters.shapes import shapes_of
from sdbatch.cell import Strength
from sdbatch.families.lora_blocks import block_names, read_lora_blocks
from sdbatch.naming.block import find_blocks

Layout = tuple[int, ...]
"""The adapter of each row of a hook's tensors."""


class AdapterStack:
    """The adapters of a recipe on one component, from construction to `detach`."""

    def __init__(self, component: nn.Module, adapters: Sequence[Mapping[str, Delta]], name: str = "unet", family: str = "sd1") -> None:
        """Attach.

        Args:
            component: The module that is changed.
            adapters: What each adapter of the stack does to it, in order; empty for one that leaves it alone.
            name: The component's: `unet`, `transformer`, `text_encoder`, `text_encoder_2`.
            family: The model's: it decides what blocks there are.
        """
        self.name = name
        self.family = family
        self.idle = True
        """No strength differs from 0: the hooks do nothing."""
        self.count = len(adapters)
        self._handles: list[RemovableHandle] = []
        self._hooks: list[_Hook] = []
        self._touches = tuple(bool(adapter) for adapter in adapters)
        self._strengths_BL = torch.zeros(1, len(adapters))
        self._blocks_BLK: Tensor | None = None
        self._scales: dict[tuple[Layout, int | None, torch.dtype, torch.device], Tensor] = {}
        modules = dict(component.named_modules())
        labels = {} if name.startswith("text_encoder") else find_blocks(list(shapes_of(component)))
        for module in dict.fromkeys(module for adapter in adapters for module in adapter):
            found = [(index, adapter[module]) for index, adapter in enumerate(adapters) if module in adapter]
            block = block_names(family).index(labels[module]) if module in labels else None
            self._attach(modules[module], found, block)

    def _attach(self, module: nn.Module, deltas: list[tuple[int, Delta]], block: int | None) -> None:
        is_norm = module.get_parameter("weight").dim() == 1
        scales = _Scales(self, block)
        hook = _NormHook(scales, module, deltas) if is_norm else _LayerHook(scales, module, deltas)
        self._hooks.append(hook)
        self._handles.append(module.register_forward_hook(hook))

    def set_cells(self, strengths: Sequence[Sequence[Strength]], repeat: int = 1) -> None:
        """The strengths of each image of the batch; `repeat` is 2 where guidance doubles the batch."""
        self._blocks_BLK = None
        if any(each.blocks for row in strengths for each in row) and not self.name.startswith("text_encoder"):
            blocks = [[read_lora_blocks(each.blocks or "ALL", self.family) for each in row] for row in strengths]
            self._blocks_BLK = torch.tensor(blocks).repeat(repeat, 1, 1)
        self._set(torch.tensor([self.weigh(row) for row in strengths]).repeat(repeat, 1))

    def weigh(self, strengths: Sequence[Strength]) -> tuple[float, ...]:
        """The strength of each adapter on this component as a whole; 0 for one that leaves it alone."""
        return tuple(self._weigh(each) if touched else 0.0 for each, touched in zip(strengths, self._touches, strict=True))

    def _weigh(self, strength: Strength) -> float:
        if not self.name.startswith("text_encoder"):
            return strength.model
        if not strength.blocks:
            return strength.text_encoder
        # The first factors are the text encoders': one for all in UNet families, one each for CLIP and T5 in FLUX.
        place = 1 if self.family == "flux" and self.name != "text_encoder" else 0
        return strength.text_encoder * read_lora_blocks(strength.blocks, self.family)[place]

    def set_strengths(self, strengths_BL: Tensor) -> None:
        """One row per image of the batch, one column per adapter; a single row serves a batch of any size. No block weights."""
        self._blocks_BLK = None
        self._set(strengths_BL)

    def _set(self, strengths_BL: Tensor) -> None:
        assert strengths_BL.shape[1] == self.count, "one strength per adapter of the stack"
        self.idle = not bool(strengths_BL.any())
        self._strengths_BL = strengths_BL
        self._scales.clear()

    def scales(self, layout: Layout, block: int | None, like: Tensor) -> Tensor:
        """[B, rows]: the strength of each row's adapter in a block, computed once per batch for all modules of one layout."""
        key = (layout, None if self._blocks_BLK is None else block, like.dtype, like.device)
        if key not in self._scales:
            strengths = self._strengths_BL[:, list(layout)]
            if self._blocks_BLK is not None and block is not None:
                strengths = strengths * self._blocks_BLK[:, list(layout), block]
            self._scales[key] = strengths.to(like)
        return self._scales[key]

    def to(self, dtype: torch.dtype) -> None:
        """Convert the factors, as the component they are attached to was converted."""
        for hook in self._hooks:
            hook.to(dtype)
        self._scales.clear()

    def detach(self) -> None:
        """Take the hooks off; the component is what it was, bit for bit."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self.idle = True


@dataclass(frozen=True, slots=True)
class _Scales:
    """The strengths of a stack, as the modules of one block see them."""

    stack: AdapterStack
    block: int | None

    @property
    def idle(self) -> bool:
        return self.stack.idle

    def of(self, layout: Layout, like: Tensor) -> Tensor:
        """[B, rows]."""
        return self.stack.scales(layout, self.block, like)


class _Rows:
    """Vectors of several adapters, one a row: they are weighed and summed for each image."""

    def __init__(self, found: Sequence[tuple[int, Tensor]], like: Tensor) -> None:
        self.layout: Layout = tuple(index for index, _ in found)
        self.values = torch.stack([vector.to(like) for _, vector in found])

    def total(self, scales: _Scales) -> Tensor:
        """[B, width]."""
        return scales.of(self.layout, self.values) @ self.values

    def to(self, dtype: torch.dtype) -> None:
        self.values = self.values.to(dtype)


class _LayerHook:
    """What all adapters of the stack add to one linear or convolutional layer."""

    def __init__(self, scales: _Scales, module: nn.Module, deltas: Sequence[tuple[int, Delta]]) -> None:
        weight = module.get_parameter("weight").detach()
        terms = [(index, term) for index, delta in deltas for term in delta.terms(weight)]
        low = [(index, term) for index, term in terms if isinstance(term, LowRank)]
        self.scales = scales
        self.layout: Layout = tuple(index for index, term in low for _ in range(term.down.shape[0]))
        # What is computed from the weight is on its device, what a file holds is not.
        self.down = torch.cat([term.down.to(weight) for _, term in low]) if low else None
        self.up = torch.cat([term.up.flatten(1).to(weight) for _, term in low], dim=1) if low else None
        self.whole: list[tuple[Layout, Term]] = [((index,), _like(term, weight)) for index, term in terms if _is_whole(term)]
        self.outputs = _rows([(index, term.factor) for index, term in terms if isinstance(term, OutputScale)], weight)
        self.inputs = _rows([(index, term.factor) for index, term in terms if isinstance(term, InputScale)], weight)
        self.bias = _rows([(index, delta.bias) for index, delta in deltas if delta.bias is not None], weight)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.scales.idle:
            return output
        # In place throughout: the output is the layer's own, fresh, and nobody else holds it yet.
        x = args[0]
        if self.outputs is not None:  # first, while the output is still the bare layer's
            bias: Tensor | None = module._parameters.get("bias")  # pyright: ignore[reportPrivateUsage]
            plain = output if bias is None else output - spread(bias[None], output.dim(), module)
            output.add_(plain * spread(self.outputs.total(self.scales), output.dim(), module))
        if self.inputs is not None:
            weight = module.get_parameter("weight")
            output.add_(apply_weight(module, x * spread(self.inputs.total(self.scales), x.dim(), module), weight))
        if self.down is not None and self.up is not None:
            self._add_low_rank(module, x, output, self.down, self.up)
        for layout, term in self.whole:
            change = _apply_whole(module, x, term)
            output.add_(change.mul_(spread(self.scales.of(layout, change), change.dim(), module)))
        if self.bias is not None:
            output.add_(spread(self.bias.total(self.scales), output.dim(), module))
        return output

    def _add_low_rank(self, module: nn.Module, x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> None:
        low = apply_weight(module, x, down)
        low.mul_(spread(self.scales.of(self.layout, low), low.dim(), module))
        if isinstance(module, nn.Conv2d):
            output.add_(functional.conv2d(low, up[:, :, None, None]))
        elif output.is_contiguous():
            output.flatten(0, -2).addmm_(low.flatten(0, -2), up.T)
        else:
            output.add_(functional.linear(low, up))

    def to(self, dtype: torch.dtype) -> None:
        self.down = None if self.down is None else self.down.to(dtype)
        self.up = None if self.up is None else self.up.to(dtype)
        self.whole = [(layout, _like(term, torch.empty(0, dtype=dtype))) for layout, term in self.whole]
        for rows in (self.outputs, self.inputs, self.bias):
            if rows is not None:
                rows.to(dtype)


class _NormHook:
    """What all adapters of the stack add to one norm: its weight and bias act on what is already normed."""

    def __init__(self, scales: _Scales, module: nn.Module, deltas: Sequence[tuple[int, Delta]]) -> None:
        weight = module.get_parameter("weight").detach()
        forms = [(index, delta.form) for index, delta in deltas]
        self.scales = scales
        self.weight = _rows([(index, form.weight) for index, form in forms if isinstance(form, Dense)], weight)
        self.bias = _rows([(index, delta.bias) for index, delta in deltas if delta.bias is not None], weight)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.scales.idle:
            return output
        is_picture = isinstance(module, nn.GroupNorm)
        if self.weight is not None:
            normed = _normalise(module, args[0]).to(output.dtype)
            output = output + normed * _spread(self.weight.total(self.scales), output.dim(), is_picture)
        if self.bias is not None:
            output = output + _spread(self.bias.total(self.scales), output.dim(), is_picture)
        return output

    def to(self, dtype: torch.dtype) -> None:
        for rows in (self.weight, self.bias):
            if rows is not None:
                rows.to(dtype)


_Hook = _LayerHook | _NormHook


def _rows(found: Sequence[tuple[int, Tensor]], like: Tensor) -> _Rows | None:
    return _Rows(found, like) if found else None


def _is_whole(term: Term) -> bool:
    return isinstance(term, Dense | Kronecker)


def _like(term: Term, like: Tensor) -> Term:
    match term:
        case Dense(weight):
            return Dense(weight.to(like))
        case Kronecker(first, second):
            return Kronecker(first.to(like), second.to(like))
        case _:
            return term


def _apply_whole(module: nn.Module, x: Tensor, term: Term) -> Tensor:
    match term:
        case Dense(weight):
            return apply_weight(module, x, weight)
        case Kronecker(first, second) if isinstance(module, nn.Conv2d):
            apart = x.unflatten(1, (first.shape[1], -1))  # [B, I1, I2, H, W]
            half = apply_weight(module, apart.flatten(0, 1), second).unflatten(0, (x.shape[0], -1))
            return torch.einsum("om,bmkhw->bokhw", first, half).flatten(1, 2)
        case Kronecker(first, second):
            half = functional.linear(x.unflatten(-1, (first.shape[1], -1)), second)  # [..., I1, O2]
            return torch.einsum("om,...mk->...ok", first, half).flatten(-2)
        case _:
            raise AssertionError("only dense matrices and Kronecker products are kept whole")


def apply_weight(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would return for this weight and no bias."""
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)  # pyright: ignore[reportArgumentType]
    return functional.linear(x, weight)


def spread(rows_BC: Tensor, dims: int, module: nn.Module) -> Tensor:
    """[B, C] shaped to meet a layer's output: [B, 1, C] for tokens, [B, C, 1, 1] for pictures."""
    return _spread(rows_BC, dims, isinstance(module, nn.Conv2d))


def _spread(rows_BC: Tensor, dims: int, is_picture: bool) -> Tensor:
    if is_picture:
        return rows_BC.reshape(*rows_BC.shape, *[1] * (dims - 2))
    return rows_BC.reshape(rows_BC.shape[0], *[1] * (dims - 2), rows_BC.shape[1])


def _normalise(module: nn.Module, x: Tensor) -> Tensor:
    """The input as the norm normalises it, before its weight and bias."""
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(x, module.num_groups, None, None, module.eps)
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
    eps: Any = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 1e-6)  # diffusers' and T5's RMS norms
    return functional.rms_norm(x.float(), (x.shape[-1],), None, eps)
