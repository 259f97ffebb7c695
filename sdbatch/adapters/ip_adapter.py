"""IP-Adapters: a picture as part of the prompt.

Beside the text, every cross-attention layer of the UNet also attends to a few tokens of a picture, and adds what it finds there:
`attention(q, text) + weight * attention(q, picture)`, before the layer's last projection. Live hooks, with a picture, a weight
and a window of steps for each image of a batch; detached, no trace is left.

Shapes: B batch, N what the UNet is given (2B with guidance: all unconditional ones first), L places of the latent picture,
T image tokens, H 2 with guidance (nothing, picture) or 1, D width of the text, I inner width of a layer, A IP-Adapters of the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdbatch.adapters.image_encoder import ImageEncoder, Seen
from sdbatch.adapters.image_projection import build_projection
from sdbatch.adapters.read import Tensors, read_tensors
from sdbatch.adapters.window import weights_at
from sdbatch.cell import ImagePrompt, WeightFile
from sdbatch.errors import WeightFileError


class IpAdapter(nn.Module):
    """An IP-Adapter file: what makes tokens of a picture, and the keys and values of each cross-attention layer."""

    def __init__(self, projection: nn.Module, reads_patches: bool, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.projection = projection
        self.reads_patches = reads_patches
        self.keys_ID = nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in keys])
        self.values_ID = nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in values])

    def to_tokens(self, seen: Sequence[Seen]) -> Tensor:
        """[H, T, D]: the tokens of H pictures, made together."""
        return self.projection(torch.cat([each.patches_1PD if self.reads_patches else each.summary_1E for each in seen]))


def load_ip_adapter(file: WeightFile, unet: nn.Module, dtype: torch.dtype) -> IpAdapter:
    """An IP-Adapter from a safetensors file or a pickle of nested dictionaries.

    Raises:
        WeightFileError: not one, or not one for this UNet.
    """
    what = f"ip_adapter.{file.name}"
    tensors = read_tensors(file).tensors
    parts: dict[str, Tensors] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensor
    if not parts["image_proj"] or not parts["ip_adapter"]:
        raise WeightFileError(f"{what}: it is no IP-Adapter; it holds {', '.join(list(tensors)[:3])}, ...")
    projection, reads_patches = build_projection(what, parts["image_proj"], dtype)
    layers = list_layers(unet)
    keys, values = (_take(what, parts["ip_adapter"], layers, kind, dtype) for kind in ("to_k_ip", "to_v_ip"))
    if left := sorted(parts["ip_adapter"].keys() - {f"{_place(index)}.{kind}.weight" for index in range(len(layers)) for kind in _KINDS}):
        raise WeightFileError(f"{what}: {len(left)} of its tensors belong to no layer of the model (first {left[0]}). {_OTHER_MODEL}")
    return IpAdapter(projection, reads_patches, keys, values).eval()


_KINDS = ("to_k_ip", "to_v_ip")
_OTHER_MODEL = "It was made for another model; choose an IP-Adapter of the model's family."


def list_layers(unet: nn.Module) -> list[nn.Module]:
    """The cross-attention layers in the order in which IP-Adapter files number them."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]


def _place(index: int) -> int:
    """The number of a cross-attention layer in a file: self-attention layers are counted too, one before each."""
    return 2 * index + 1


def _take(what: str, state: Tensors, layers: Sequence[nn.Module], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """The weights of one kind for every layer."""
    found: list[Tensor] = []
    for index, layer in enumerate(layers):
        key = f"{_place(index)}.{kind}.weight"
        if key not in state:
            raise WeightFileError(f"{what}: {key} is missing, the model has {len(layers)} cross-attention layers. {_OTHER_MODEL}")
        expected = layer.get_parameter("to_k.weight").shape
        if state[key].shape != expected:
            raise WeightFileError(f"{what}: {key} is {list(state[key].shape)}, the model's layer {list(expected)}. {_OTHER_MODEL}")
        found.append(state[key].to(dtype))
    return found


@dataclass(slots=True)
class _Shown:
    """What one IP-Adapter shows to a batch."""

    adapter: int
    """Its place in the stack."""
    tokens_NTD: Tensor
    weights: tuple[float, ...]
    """Of each image."""
    windows: tuple[tuple[float, float], ...]
    scale_N11: Tensor | None = None
    """At this step; None when it acts on no image."""

    def set_step(self, when: tuple[int, int]) -> None:
        scales = weights_at(when, self.weights, self.windows)
        repeat = self.tokens_NTD.shape[0] // len(scales)
        scale = torch.tensor(scales * repeat).to(self.tokens_NTD, non_blocking=True) if any(scales) else None
        self.scale_N11 = None if scale is None else scale.view(-1, 1, 1)


class IpAdapterStack:
    """The IP-Adapters of a recipe on a UNet, from construction to `detach`. What they find adds up."""

    def __init__(self, unet: nn.Module, adapters: Sequence[IpAdapter], encoders: Sequence[ImageEncoder]) -> None:
        """Attach.

        Args:
            unet: The module that is changed.
            adapters: In their order.
            encoders: What each of them sees through.
        """
        self.adapters = adapters
        self.encoders = encoders
        self.shown: list[_Shown] = []
        self._handles: list[Any] = []
        for index, layer in enumerate(list_layers(unet)):
            hook = _Layer(self, index, layer)
            out: Any = layer.get_submodule("to_out.0")
            self._handles.append(layer.get_submodule("to_q").register_forward_hook(hook.keep_query))
            self._handles.append(out.register_forward_pre_hook(hook.add_pictures))

    def set_prompts(self, prompts_BA: Sequence[Sequence[ImagePrompt]], *, is_guided: bool) -> None:
        """The picture, weight and window of each image of the batch; where guidance doubles it, the first half sees nothing.

        Raises:
            CellError: a file is no picture.
        """
        self.shown = []
        for index, (adapter, encoder) in enumerate(zip(self.adapters, self.encoders, strict=True)):
            prompts = [row[index] for row in prompts_BA]
            if not any(prompt.weight for prompt in prompts):
                continue
            # What is multiplied by 0 must be finite: an image without weight is shown nothing.
            seen = {prompt.image_sha256: encoder.see(prompt) for prompt in prompts if prompt.weight}
            nothing = encoder.see_nothing()
            pairs = {key: adapter.to_tokens([nothing, each] if is_guided else [each]) for key, each in {**seen, "": nothing}.items()}
            rows = torch.stack([pairs[prompt.image_sha256 if prompt.weight else ""] for prompt in prompts])
            windows = tuple((prompt.start, prompt.end) for prompt in prompts)
            tokens = rows.transpose(0, 1).flatten(0, 1)  # [B, H, T, D] -> [N, T, D]
            self.shown.append(_Shown(index, tokens, tuple(prompt.weight for prompt in prompts), windows))

    def set_step(self, when: tuple[int, int]) -> None:
        """Go to a step: (step, steps)."""
        for shown in self.shown:
            shown.set_step(when)

    @property
    def active(self) -> list[_Shown]:
        """What acts on some image at this step."""
        return [shown for shown in self.shown if shown.scale_N11 is not None]

    def detach(self) -> None:
        """Take the hooks off; the UNet is what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.shown = []


@dataclass(slots=True)
class _Layer:
    """One cross-attention layer: its queries are kept until what they find in the pictures is added."""

    stack: IpAdapterStack
    index: int
    layer: nn.Module
    query_NLI: Tensor | None = field(default=None)

    def keep_query(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.query_NLI = output if self.stack.active else None

    def add_pictures(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.query_NLI is None:
            return None
        layer: Any = self.layer
        found, query = args[0], _to_heads(self.query_NLI, layer.heads)
        self.query_NLI = None
        for shown in self.stack.active:
            adapter = self.stack.adapters[shown.adapter]
            key, value = (
                _to_heads(functional.linear(shown.tokens_NTD, weights[self.index]), layer.heads)
                for weights in (adapter.keys_ID, adapter.values_ID)
            )
            seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(found.shape)
            assert shown.scale_N11 is not None
            found = found + shown.scale_N11 * seen
        return (found, *args[1:])


def _to_heads(rows: Tensor, heads: int) -> Tensor:
    """[N, L, I] -> [N, heads, L, I / heads]."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)
