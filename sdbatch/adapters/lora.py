"""LoRA and its relatives: read from any dialect, attached as live hooks, taken off without a trace.

A hook adds `strength * up(down(x))` to what its module returns. The strength is a vector over the batch, so one
denoising batch may hold different strengths; all LoRAs of a stack lie side by side along the rank, so one pair of
products serves them all. Changing strengths touches no weight.

Shapes: B batch, T tokens, I in, O out, R rank over the whole stack, L LoRAs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sdbatch.adapters.delta import UNSUPPORTED, Delta, Dense, LowRank, find_kind, fit_to
from sdbatch.adapters.dialect import find_component, flat_names, group_by_module, peft_alpha
from sdbatch.adapters.read import read_tensors
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, matched to the modules of one model."""

    name: str
    deltas: dict[str, dict[str, Delta]]
    """component -> module -> what is added to its weight."""
    applied_keys: int
    total_keys: int
    unmatched: tuple[str, ...] = field(default=())
    """Names in the file that fit nothing in the model."""


def load_lora(file: WeightFile, components: dict[str, nn.Module]) -> Lora:
    """Read a LoRA and match it to the components of a model.

    Raises:
        WeightFileError: nothing matches, a size differs (another family), or a form that cannot be applied.
    """
    content = read_tensors(file)
    groups, unmatched = group_by_module(content.tensors)
    modules = {name: _linear_and_conv(component) for name, component in components.items()}
    tables = {name: flat_names(found, _layers_per_block(components[name])) for name, found in modules.items()}
    deltas: dict[str, dict[str, Delta]] = {}
    applied = 0
    for key, parts in groups.items():
        component, flat = find_component(key)
        module = tables.get(component, {}).get(flat)
        if module is None:
            unmatched.append(key)
            continue
        applied += len(parts)
        if "alpha" not in parts and (alpha := peft_alpha(content.metadata, component, module)) is not None:
            parts = {**parts, "alpha": torch.tensor(alpha)}
        deltas.setdefault(component, {})[module] = _compute_delta(file, key, parts, modules[component][module])
    if not deltas:
        raise WeightFileError(_nothing_matched(file, list(content.tensors)))
    return Lora(file.name, deltas, applied, len(content.tensors), tuple(unmatched))


def _compute_delta(file: WeightFile, key: str, parts: dict[str, Tensor], module: nn.Module) -> Delta:
    for role, form in UNSUPPORTED.items():
        if role in parts:
            raise WeightFileError(f"lora.{file.name}: {key} is {form}, which cannot be applied. Use LoRA, LoCon, LoHa or LoKr files.")
    if (build := find_kind(parts)) is None:
        raise WeightFileError(f"lora.{file.name}: {key} has {', '.join(sorted(parts))}, which is no complete LoRA, LoHa or LoKr.")
    weight = module.get_parameter("weight")
    try:
        delta = fit_to(build(parts), weight.shape)
    except RuntimeError as error:
        raise WeightFileError(f"lora.{file.name}: the tensors of {key} do not fit each other ({error}).") from error
    if delta is None:
        found = " and ".join(str(list(part.shape)) for role, part in parts.items() if role != "alpha")
        raise WeightFileError(
            f"lora.{file.name}: {key} has tensors of shape {found}; the model's weight there is {list(weight.shape)}. "
            "It was made for another family; choose a LoRA of this one."
        )
    return delta


def _nothing_matched(file: WeightFile, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) or "no tensors at all"
    return f"lora.{file.name}: none of its {len(keys)} keys belongs to this model. It holds {shown}, ... Choose a LoRA of this family."


def _linear_and_conv(component: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in component.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def _layers_per_block(component: nn.Module) -> int | None:
    layers: Any = getattr(getattr(component, "config", None), "layers_per_block", None)
    return layers if isinstance(layers, int) else None


@dataclass(slots=True)
class _Hook:
    """What all LoRAs of the stack add to one module."""

    stack: LoraStack
    layout: tuple[int, ...]
    """The LoRA of each rank."""
    down: Tensor | None
    up: Tensor | None
    dense: list[tuple[int, Tensor]]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.stack.idle:
            return output
        # In place throughout: the output is the layer's own, fresh, and nobody else holds it yet.
        if self.down is not None and self.up is not None:
            low = _apply(module, args[0], self.down)
            low.mul_(_spread(self.stack.scales(self.layout), low.dim(), module))
            if isinstance(module, nn.Conv2d):
                output.add_(functional.conv2d(low, self.up[:, :, None, None]))
            elif output.is_contiguous():
                output.flatten(0, -2).addmm_(low.flatten(0, -2), self.up.T)
            else:
                output.add_(functional.linear(low, self.up))
        for lora, weight in self.dense:
            output.add_(_apply(module, args[0], weight).mul_(_spread(self.stack.scales((lora,)), output.dim(), module)))
        return output


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)  # pyright: ignore[reportArgumentType]
    return functional.linear(x, weight)


def _spread(scale_BR: Tensor, dims: int, module: nn.Module) -> Tensor:
    """[B, R] shaped to meet a layer's output: [B, 1, R] for tokens, [B, R, 1, 1] for pictures."""
    if isinstance(module, nn.Conv2d):
        return scale_BR[:, :, None, None]
    return scale_BR.reshape(scale_BR.shape[0], *([1] * (dims - 2)), scale_BR.shape[1])


class LoraStack:
    """The LoRAs of a recipe on one component, from construction to `detach`."""

    def __init__(self, component: nn.Module, loras: Sequence[dict[str, Delta]]) -> None:
        self.idle = True
        """No strength differs from 0: the hooks do nothing."""
        self.count = len(loras)
        self._handles: list[RemovableHandle] = []
        self._hooks: list[_Hook] = []
        self._strengths_BL = torch.zeros(1, len(loras))
        self._scales: dict[tuple[int, ...], Tensor] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}
        modules = dict(component.named_modules())
        for name in dict.fromkeys(name for lora in loras for name in lora):
            found = [(index, lora[name]) for index, lora in enumerate(loras) if name in lora]
            self._attach(modules[name], found)

    def _attach(self, module: nn.Module, deltas: list[tuple[int, Delta]]) -> None:
        weight = module.get_parameter("weight")
        low = [(index, delta) for index, delta in deltas if isinstance(delta, LowRank)]
        layout = tuple(index for index, delta in low for _ in range(delta.down.shape[0]))
        down = torch.cat([delta.down for _, delta in low]).to(weight) if low else None
        up = torch.cat([delta.up for _, delta in low], dim=1).to(weight) if low else None
        dense = [(index, delta.weight.to(weight)) for index, delta in deltas if isinstance(delta, Dense)]
        hook = _Hook(self, layout, down, up, dense)
        self._hooks.append(hook)
        self._handles.append(module.register_forward_hook(hook))

    def set_strengths(self, strengths_BL: Tensor) -> None:
        """One row per image of the batch, one column per LoRA; a single row serves a batch of any size."""
        assert strengths_BL.shape[1] == self.count, "one strength per LoRA of the stack"
        self.idle = not bool(strengths_BL.any())
        self._strengths_BL = strengths_BL
        self._scales.clear()

    def scales(self, layout: tuple[int, ...]) -> Tensor:
        """[B, R]: the strength of each rank's LoRA, computed once per batch for all modules of one layout."""
        if layout not in self._scales:
            hook = self._hooks[0]
            like = hook.down if hook.down is not None else hook.dense[0][1]
            if layout not in self._indices:
                self._indices[layout] = torch.tensor(layout)
            self._scales[layout] = self._strengths_BL[:, self._indices[layout]].to(like)
        return self._scales[layout]

    def to(self, dtype: torch.dtype) -> None:
        """Convert the factors, as the component they are attached to was converted."""
        for hook in self._hooks:
            hook.down = None if hook.down is None else hook.down.to(dtype)
            hook.up = None if hook.up is None else hook.up.to(dtype)
            hook.dense = [(index, weight.to(dtype)) for index, weight in hook.dense]
        self._scales.clear()

    def detach(self) -> None:
        """Take the hooks off; the component is what it was, bit for bit."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self.idle = True
