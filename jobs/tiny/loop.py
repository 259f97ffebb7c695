"""The training loop every part shares: schedule, gradient averaging over processes, EMA, restart, log."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from jobs.tiny.muon import Muon


@dataclass(frozen=True)
class LoopSettings:
    """How long and how hard to train. The run ends at `steps` or after `minutes`, whichever is first."""

    steps: int = 10_000
    minutes: float = 1e9  # wall time, summed over restarts
    lr: float = 1e-3
    floor: float = 0.03  # fraction of lr left at the end
    warmup_steps: int = 50
    weight_decay: float = 0.01
    ema: float = 0.995
    clip_norm: float = 1.0
    muon: bool = False  # orthogonalised momentum for the inner weights, AdamW for the rest
    log_steps: int = 100
    save_minutes: float = 4.0
    seed: int = 0

    @classmethod
    def pick(cls, section: dict[str, Any]) -> "LoopSettings":
        """Take the loop's own keys out of a config section."""
        return cls(**{field.name: section[field.name] for field in fields(cls) if field.name in section})


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share each step."""
    return dist.get_world_size() if dist.is_initialized() else 1


def build_optimizers(settings: LoopSettings, parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices that are neither first nor last and AdamW for the rest."""
    inner = {
        name for name, value in parameters.items() if settings.muon and value.ndim > 1 and not name.startswith(("conv_in", "conv_out"))
    }
    rest = [value for name, value in parameters.items() if name not in inner]
    groups = [
        {"params": [value for value in rest if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in rest if value.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99))] if groups else []
    if inner:
        matrices = [parameters[name] for name in parameters if name in inner]
        optimizers.append(Muon(matrices, settings.lr, settings.weight_decay))
    return optimizers


class Loop:
    """Trains named parameters with one `step` function; resumes from `out`/state.pt when it exists."""

    def __init__(self, settings: LoopSettings, parameters: dict[str, nn.Parameter], out: Path) -> None:
        self.settings, self.parameters, self.out = settings, parameters, out
        self.values = list(parameters.values())
        self.optimizers = build_optimizers(settings, parameters)
        self.averages = [value.detach().clone() for value in self.values]
        self.step, self.elapsed_s = 0, 0.0
        self.log: list[dict[str, float]] = []
        out.mkdir(parents=True, exist_ok=True)
        self._restore()
        if world() > 1:
            for value in (*self.values, *self.averages):
                dist.broadcast(value.data, 0)

    def _restore(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["parameters"][name])
            for name, average in zip(self.parameters, self.averages, strict=True):
                average.copy_(state["averages"][name])
        if len(state["optimizers"]) == len(self.optimizers):  # else the optimizer was changed, and starts afresh
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.step, self.elapsed_s, self.log = state["step"], state["elapsed_s"], json.loads(state["log"])
        self._say(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write the restart state. Side effects: replaces `out`/state.pt and log.json in one go."""
        if rank():
            return
        state = {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "averages": dict(zip(self.parameters, self.averages, strict=True)),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "log": json.dumps(self.log),
        }
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").replace(self.out / "state.pt")
        (self.out / "log.json").write_text(json.dumps(self.log, indent=0))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights inside the block."""
        live = [value.detach().clone() for value in self.values]
        try:
            torch._foreach_copy_([value.data for value in self.values], self.averages)
            yield
        finally:
            torch._foreach_copy_([value.data for value in self.values], live)

    def progress(self) -> float:
        """Fraction of the run that is done; the same in every process."""
        done = max(self.step / self.settings.steps, self.elapsed_s / 60 / self.settings.minutes)
        if world() > 1:
            shared = torch.tensor(done)
            dist.broadcast(shared, 0)
            done = shared.item()
        return done

    def _set_rate(self, progress: float) -> None:
        warm = min(1.0, (self.step + 1) / self.settings.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        rate = self.settings.lr * warm * (cosine * (1 - self.settings.floor) + self.settings.floor)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _share_gradients(self) -> None:
        if world() == 1:
            return
        flat = torch.cat([torch.zeros_like(v).flatten() if v.grad is None else v.grad.flatten() for v in self.values])
        dist.all_reduce(flat)
        for value, part in zip(self.values, (flat / world()).split([v.numel() for v in self.values]), strict=True):
            value.grad = part.view_as(value).clone()

    def _update(self, loss: torch.Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.values, self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.settings.ema, (1 + self.step) / (20 + self.step))
        torch._foreach_lerp_(self.averages, [value.detach() for value in self.values], 1 - decay)

    def run(
        self,
        step: Callable[[float], tuple[torch.Tensor, dict[str, float]]],
        on_save: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `step(progress)` → (loss, figures) until done; `on_save` runs with averaged weights, on process 0."""
        figures: list[dict[str, float]] = []
        saved = time.monotonic()
        while (progress := self.progress()) < 1:
            started = time.monotonic()
            self._seed()
            self._set_rate(progress)
            loss, more = step(progress)
            self._update(loss)
            figures.append({"loss": loss.item(), **more})
            self.step += 1
            self.elapsed_s += time.monotonic() - started
            if self.step % self.settings.log_steps == 0:
                self._report(figures)
                figures.clear()
            if time.monotonic() - saved > 60 * self.settings.save_minutes:
                self._checkpoint(on_save)
                saved = time.monotonic()
        self._checkpoint(on_save)
        self._say(f"done: {self.step} steps, {self.elapsed_s / 60:.1f} min")

    def _seed(self) -> None:
        number = (self.settings.seed * 1_000_003 + self.step) * 64 + rank()
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)

    def _checkpoint(self, on_save: Callable[[], None]) -> None:
        self.save()
        if not rank():
            with self.averaged():
                on_save()

    def _report(self, figures: list[dict[str, float]]) -> None:
        names = sorted({name for row in figures for name in row})
        means = {name: float(np.mean([row[name] for row in figures if name in row])) for name in names}
        self.log.append({"step": self.step, "elapsed_s": round(self.elapsed_s, 1), **means})
        text = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        self._say(f"step {self.step} {self.elapsed_s / 60:.1f} min {text}")

    def _say(self, text: str) -> None:
        if not rank():
            print(f"[{self.out.name}] {text}", flush=True)
