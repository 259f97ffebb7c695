"""Random tensors of every form for one layer, and the weight they make of it, by plain products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Parts = dict[str, Tensor]
Made = tuple[Parts, Callable[[Tensor], Tensor]]
"""The tensors as a file names them, and W -> F(W) computed by hand."""

ALPHA, RANK = 3.0, 4


@dataclass(frozen=True)
class Maker:
    """Makes the tensors of a form for a layer of some shape."""

    shape: torch.Size
    random: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=self.random)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.shape[2:])

    def lora(self) -> Made:
        out, into, *kernel = self.shape
        up, down = self.normal(out, RANK, *[1] * len(kernel)), self.normal(RANK, into, *kernel)
        product = (up.flatten(1) @ down.flatten(1)).reshape(*self.shape) * ALPHA / RANK
        return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}, lambda weight: weight + product

    def tucker(self) -> Made:
        out, into = self.shape[:2]
        up, mid, down = self.normal(out, RANK, 1, 1), self.normal(RANK, RANK, *self.kernel), self.normal(RANK, into, 1, 1)
        product = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0]) * ALPHA / RANK
        parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
        return parts, lambda weight: weight + product

    def dylora(self) -> Made:
        """LyCORIS writes the factors of a convolution with two dimensions."""
        parts, merged = self.lora()
        return {key: value.flatten(1) if value.dim() > 2 else value for key, value in parts.items()}, merged

    def loha(self) -> Made:
        out, into = self.shape[0], self.shape[1:].numel()
        a1, b1, a2, b2 = self.normal(out, RANK), self.normal(RANK, into), self.normal(out, RANK), self.normal(RANK, into)
        product = ((a1 @ b1) * (a2 @ b2)).reshape(self.shape) * ALPHA / RANK
        parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
        return parts, lambda weight: weight + product

    def loha_of_onetrainer(self) -> Made:
        """Its factors of a convolution have four dimensions."""
        parts, merged = self.loha()
        fours = {key: self._four(key, value) if value.dim() else value for key, value in parts.items()}
        return (fours if self.kernel else parts), merged

    def _four(self, key: str, factor: Tensor) -> Tensor:
        return factor.reshape(RANK, *self.shape[1:]) if key.endswith("_b") else factor[:, :, None, None]

    def loha_tucker(self) -> Made:
        out, into = self.shape[:2]
        a, b = [self.normal(RANK, out) for _ in range(2)], [self.normal(RANK, into) for _ in range(2)]
        core = [self.normal(RANK, RANK, *self.kernel) for _ in range(2)]
        halves = [torch.einsum("pqkl,po,qi->oikl", core[half], a[half], b[half]) for half in range(2)]
        parts = {f"hada_w{n + 1}_a": a[n] for n in range(2)} | {f"hada_w{n + 1}_b": b[n] for n in range(2)}
        parts |= {f"hada_t{n + 1}": core[n] for n in range(2)} | {"alpha": torch.tensor(ALPHA)}
        return parts, lambda weight: weight + halves[0] * halves[1] * ALPHA / RANK

    def lokr(self, *, low_first: bool = False, low_second: bool = True) -> Made:
        out, into, *kernel = self.shape
        first_ab = self.normal(4, 2), self.normal(2, 4)
        a, b = self.normal(out // 4, 2), self.normal(2, into // 4, *kernel)
        first, second = first_ab[0] @ first_ab[1], (a @ b.flatten(1)).reshape(out // 4, into // 4, *kernel)
        blocks = torch.einsum("ab,cd...->acbd...", first, second)
        product = blocks.reshape(*self.shape) * (ALPHA / 2 if low_first or low_second else 1)
        parts: Parts = {"alpha": torch.tensor(ALPHA)}
        parts |= {"lokr_w1_a": first_ab[0], "lokr_w1_b": first_ab[1]} if low_first else {"lokr_w1": first}
        given = b if low_first else b.flatten(1)  # both spellings of a convolution's are about
        parts |= {"lokr_w2_a": a, "lokr_w2_b": given} if low_second else {"lokr_w2": second}
        return parts, lambda weight: weight + product

    def lokr_tucker(self) -> Made:
        out, into = self.shape[:2]
        first, a, b, core = self.normal(4, 4), self.normal(2, out // 4), self.normal(2, into // 4), self.normal(2, 2, *self.kernel)
        second = torch.einsum("pqkl,po,qi->oikl", core, a, b)
        product = torch.einsum("ab,cdkl->acbdkl", first, second).reshape(self.shape) * ALPHA / 2
        parts = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core, "alpha": torch.tensor(ALPHA)}
        return parts, lambda weight: weight + product

    def difference(self) -> Made:
        change = self.normal(*self.shape)
        return {"diff": change}, lambda weight: weight + change

    def dora(self, inner: str = "lora", *, axis: int = 0) -> Made:
        parts, merge = getattr(self, inner)()
        magnitude = 1 + self.normal(self.shape[axis]).abs()
        sides = [1] * len(self.shape)
        sides[axis] = -1

        def decompose(weight: Tensor) -> Tensor:
            merged = merge(weight)
            others = tuple(dim for dim in range(merged.dim()) if dim != axis)
            return magnitude.reshape(sides) * merged / merged.pow(2).sum(dim=others, keepdim=True).sqrt()

        return {**parts, "dora_scale": magnitude.reshape(sides)}, decompose

    def ia3(self, *, on_input: bool) -> Made:
        factor = self.normal(self.shape[1 if on_input else 0])
        sides = [1] * len(self.shape)
        sides[1 if on_input else 0] = -1
        given = factor if len(self.shape) == 2 else factor.reshape(1, -1, *[1] * len(self.kernel))
        return {"weight": given, "on_input": torch.tensor(int(on_input))}, lambda weight: weight * (1 + factor.reshape(sides))

    def glora(self, *, old: bool = False) -> Made:
        out, into, *kernel = self.shape
        ones = [1] * len(kernel)
        a1, a2 = self.normal(into, RANK, *ones), self.normal(RANK, into, *ones)
        b1, b2 = self.normal(out, RANK, *ones), self.normal(RANK, into, *kernel)
        plain = (b1.flatten(1) @ b2.flatten(1)).reshape(*self.shape)

        def merge(weight: Tensor) -> Tensor:
            turned = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
            return weight + (turned + plain) * ALPHA / RANK

        names = ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2")
        tensors = dict(zip(names, (a1, a2, b1, b2), strict=True))
        return {f"{name}.weight": tensor for name, tensor in tensors.items()} | {"alpha": torch.tensor(ALPHA)}, merge

    def oft(self, *, rescaled: bool = False, bound: float = 0.0) -> Made:
        size = 4
        blocks = self.normal(self.shape[0] // size, size, size)
        rescale = 1 + self.normal(self.shape[0], *[1] * (len(self.shape) - 1))
        skew = blocks - blocks.transpose(1, 2)
        if bound and (norm := float(skew.norm())) > bound * self.shape[0]:
            skew = skew * bound * self.shape[0] / norm
        turns = [(torch.eye(size) + part) @ torch.linalg.inv(torch.eye(size) - part) for part in skew]

        def turn(weight: Tensor) -> Tensor:
            turned = (torch.block_diag(*turns).T @ weight.flatten(1)).reshape(weight.shape)
            return turned * rescale if rescaled else turned

        parts = {"oft_blocks": blocks, "alpha": torch.tensor(bound)}
        return (parts | {"rescale": rescale} if rescaled else parts), turn


FORMS: dict[str, Callable[[Maker], Made]] = {
    "LoRA": lambda maker: maker.lora(),
    "DyLoRA": lambda maker: maker.dylora(),
    "LoHa": lambda maker: maker.loha(),
    "LoHa of OneTrainer": lambda maker: maker.loha_of_onetrainer(),
    "LoKr": lambda maker: maker.lokr(),
    "LoKr low": lambda maker: maker.lokr(low_first=True),
    "LoKr full": lambda maker: maker.lokr(low_second=False),
    "difference": lambda maker: maker.difference(),
    "DoRA": lambda maker: maker.dora(),
    "DoRA of inputs": lambda maker: maker.dora(axis=1),
    "DoRA over LoHa": lambda maker: maker.dora("loha"),
    "DoRA over LoKr of inputs": lambda maker: maker.dora("lokr", axis=1),
    "IA3 on inputs": lambda maker: maker.ia3(on_input=True),
    "IA3 on outputs": lambda maker: maker.ia3(on_input=False),
    "GLoRA": lambda maker: maker.glora(),
    "GLoRA old": lambda maker: maker.glora(old=True),
    "OFT": lambda maker: maker.oft(),
    "OFT bound and rescaled": lambda maker: maker.oft(rescaled=True, bound=0.01),
}
"""Forms of any layer."""

TUCKER_FORMS: dict[str, Callable[[Maker], Made]] = {
    "LoCon Tucker": lambda maker: maker.tucker(),
    "LoHa Tucker": lambda maker: maker.loha_tucker(),
    "LoKr Tucker": lambda maker: maker.lokr_tucker(),
    "DoRA over LoCon Tucker": lambda maker: maker.dora("tucker"),
}
"""Forms that only a convolution with a kernel has."""


def make_layer(kind: str) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(1)
    match kind:
        case "linear":
            return nn.Linear(24, 32)
        case "conv 1x1":
            return nn.Conv2d(24, 32, 1)
        case _:
            return nn.Conv2d(24, 32, 3, stride=2, padding=1)


LAYERS = ("linear", "conv 1x1", "conv 3x3")


def all_cases() -> list[tuple[str, str]]:
    """(form, layer) of every form on every layer it exists for."""
    return [(form, layer) for form in FORMS for layer in LAYERS] + [(form, "conv 3x3") for form in TUCKER_FORMS]


def make(form: str, layer: nn.Module) -> Made:
    return (FORMS | TUCKER_FORMS)[form](Maker(layer.get_parameter("weight").shape, torch.Generator().manual_seed(7)))
