"""Muon: momentum whose matrix is made orthogonal before it is applied, so that rare directions learn as fast.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the step's size matched to AdamW's as in
Liu et al. 2025, https://arxiv.org/abs/2502.16982. torch's own class takes only 2-D weights and rounds to bfloat16,
which is slow on a CPU; convolutions here are matrices [out, in × k × k].
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MATCH_ADAM = 0.2


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values near 1 (Newton-Schulz). Shapes: [m, n] in and out."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(a * x, torch.addmm(b * square, square, square, beta=1, alpha=c), x)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; give the rest to AdamW."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Apply the gradients."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                size = MATCH_ADAM * max(ahead.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalise(ahead).view_as(weight), alpha=-group["lr"] * size)
