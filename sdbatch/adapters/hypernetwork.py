"""Hypernetworks: small networks that change what an attention layer makes its keys and values from.

A file holds a pair of networks for each width of context: `x + strength * network(x)` goes into `to_k` and `to_v` in place of
x. Live hooks, a strength per image; detached, no trace is left.

Source of the file format: A1111's webui. Dropout layers are there in training only; their places are left out.

Shapes: B batch, C width of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdbatch.adapters.finite import refuse_not_finite
from sdbatch.adapters.read import read_pickle
from sdbatch.cell import WeightFile
from sdbatch.errors import WeightFileError, did_you_mean

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "leakyrelu": functional.leaky_relu,
    "elu": functional.elu,
    "swish": functional.hardswish,  # A1111's word for it
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "silu": functional.silu,
    "mish": functional.mish,
    "gelu": functional.gelu,
    "softplus": functional.softplus,
    "hardtanh": functional.hardtanh,
    "hardsigmoid": functional.hardsigmoid,
    "selu": functional.selu,
    "celu": functional.celu,
    "relu6": functional.relu6,
    "rrelu": functional.rrelu,
    "logsigmoid": functional.logsigmoid,
    "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
}
"""A1111's names, in lower case, of the functions between the layers."""

_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer, and what follows it."""

    weight: Tensor
    bias: Tensor
    activation: Activation | None
    norm: tuple[Tensor, Tensor] | None
    """Weight and bias of a layer norm."""

    def to(self, like: Tensor) -> Layer:
        """The layer on another tensor's device and in its dtype."""
        norm = None if self.norm is None else (self.norm[0].to(like), self.norm[1].to(like))
        return Layer(self.weight.to(like), self.bias.to(like), self.activation, norm)


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """A hypernetwork file."""

    name: str
    pairs: Mapping[int, tuple[tuple[Layer, ...], tuple[Layer, ...]]]
    """Width of the context -> the networks of keys and of values."""


def load_hypernetwork(file: WeightFile) -> Hypernetwork:
    """Read a hypernetwork.

    Raises:
        WeightFileError: it is none, or has a form that cannot be applied.
    """
    content = read_pickle(file)
    pairs: dict[int, tuple[tuple[Layer, ...], tuple[Layer, ...]]] = {}
    for width, states in content.items():
        if isinstance(width, int) and isinstance(states, list | tuple):
            try:
                key, value = (_read_network(file, content, state) for state in cast("tuple[Any, Any]", states)[:2])
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise WeightFileError(
                    f"hypernetwork.{file.name}: its networks for {width} cannot be read ({error}). Choose another file."
                ) from error
            pairs[width] = (key, value)
    if not pairs:
        raise WeightFileError(f"hypernetwork.{file.name}: no networks found in it. Choose a hypernetwork that A1111 has trained.")
    return Hypernetwork(file.name, pairs)


def _read_network(file: WeightFile, settings: Mapping[Any, Any], state: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    """The layers of one network, by the indices that are there: those of activations and dropout hold no tensors."""
    name = str(settings.get("activation_func") or "linear").lower()
    if name not in ACTIVATIONS:
        raise WeightFileError(f"hypernetwork.{file.name}: its activation {name!r} is not known. {did_you_mean(name, ACTIVATIONS)}")
    refuse_not_finite(state, f"hypernetwork.{file.name}")
    renamed = {_renamed(key): tensor for key, tensor in state.items()}
    indices = sorted({int(key.split(".")[1]) for key in renamed if key.startswith("linear.")})
    found = [(renamed[f"linear.{index}.weight"], renamed[f"linear.{index}.bias"]) for index in indices]
    linears = sum(weight.dim() == 2 for weight, _ in found)
    layers: list[Layer] = []
    for weight, bias in found:
        if weight.dim() == 1:  # a norm belongs to the linear layer before it
            before = layers.pop()
            layers.append(Layer(before.weight, before.bias, before.activation, (weight.float(), bias.float())))
            continue
        is_active = len(layers) < linears - 1 or bool(settings.get("activate_output", True))
        layers.append(Layer(weight.float(), bias.float(), ACTIVATIONS[name] if is_active else None, None))
    return tuple(layers)


def _renamed(key: str) -> str:
    head, _, rest = key.partition(".")
    return f"{_OLD_NAMES[head]}.{rest}" if head in _OLD_NAMES else key


def run_network(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """What a network makes of its input."""
    for layer in layers:
        x = functional.linear(x, layer.weight, layer.bias)
        if layer.activation is not None:
            x = layer.activation(x)
        if layer.norm is not None:
            x = functional.layer_norm(x, layer.norm[0].shape, *layer.norm)
    return x


class HypernetworkStack:
    """The hypernetworks of a recipe on a UNet, from construction to `detach`. They act one after the other, in order."""

    def __init__(self, unet: nn.Module, networks: Sequence[Hypernetwork]) -> None:
        """Attach.

        Raises:
            WeightFileError: a hypernetwork was made for contexts that the model does not have.
        """
        found = {name: module for name, module in unet.named_modules() if name.endswith((".to_k", ".to_v"))}
        layers = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
        widths = {module.in_features for module in layers.values()}
        texts = {module.in_features for name, module in layers.items() if name.endswith("attn2.to_k")}
        for network in networks:
            # As in A1111, a network of a width that the model does not have is left out: files may hold those of several families.
            if not network.pairs.keys() <= widths and texts.isdisjoint(network.pairs):
                raise WeightFileError(
                    f"hypernetwork.{network.name}: made for contexts {_join(network.pairs)} wide, the model's are {_join(widths)}. "
                    "It was made for another family; choose one of this family."
                )
        self._strengths_BL = torch.zeros(1, len(networks))
        self._columns: dict[tuple[int, torch.dtype, torch.device], Tensor | None] = {}
        self._handles = [module.register_forward_pre_hook(self._hook(name, module, networks)) for name, module in layers.items()]

    def _hook(self, name: str, module: nn.Linear, networks: Sequence[Hypernetwork]) -> _Hook:
        side, width = (0 if name.endswith(".to_k") else 1), module.in_features
        own = [(index, network.pairs[width][side]) for index, network in enumerate(networks) if width in network.pairs]
        return _Hook(self, [(index, tuple(layer.to(module.weight) for layer in layers)) for index, layers in own])

    def set_strengths(self, strengths_BL: Tensor) -> None:
        """One row per image of the batch, one column per hypernetwork."""
        self._strengths_BL = strengths_BL
        self._columns.clear()

    def strength(self, index: int, like: Tensor) -> Tensor | None:
        """[B, 1, 1] of one hypernetwork; None when no image uses it."""
        key = (index, like.dtype, like.device)
        if key not in self._columns:
            column = self._strengths_BL[:, index]
            self._columns[key] = column.to(like)[:, None, None] if bool(column.any()) else None
        return self._columns[key]

    def detach(self) -> None:
        """Take the hooks off; the UNet is what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@dataclass(slots=True)
class _Hook:
    stack: HypernetworkStack
    networks: Sequence[tuple[int, tuple[Layer, ...]]]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        for index, layers in self.networks:
            if (strength := self.stack.strength(index, x)) is not None:
                fitting = layers if layers[0].weight.dtype is x.dtype else tuple(layer.to(x) for layer in layers)  # the float32 retry
                x = x + strength * run_network(fitting, x)
        return (x, *args[1:])


def _join(widths: Iterable[int]) -> str:
    return ", ".join(str(width) for width in sorted(widths))
