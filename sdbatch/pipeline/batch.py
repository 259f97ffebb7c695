"""A batch on its way through the engine: jobs to denoise, groups to decode, pictures in the cells' order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

import sdbatch
from sdbatch.cell import Cell, Picture
from sdbatch.pipeline.decode import find_fault
from sdbatch.pipeline.model import Model
from sdbatch.pipeline.picture import put_back
from sdbatch.pipeline.samplers import Schedule
from sdbatch.pipeline.start import Start
from sdbatch.pipeline.text import Embedding
from sdbatch.pipeline.upscale import Upscaler


@dataclass(slots=True)
class Job:
    """The cells of a batch whose prompts take the same number of chunks: what is denoised at once."""

    slots: list[int]
    """Their places in the batch."""
    cells: list[Cell]
    positive: list[Embedding]
    negative: list[Embedding]
    generators: list[torch.Generator] = field(default_factory=list[torch.Generator])
    schedule: Schedule | None = None
    start: Start | None = None

    def add(self, other: Job) -> None:
        """Take the cells of another job in."""
        self.slots += other.slots
        self.cells += other.cells
        self.positive += other.positive
        self.negative += other.negative


@dataclass(slots=True)
class Group:
    """A denoised job."""

    slots: list[int]
    cells: list[Cell]
    vae: nn.Module
    latents: Tensor
    facts: dict[str, Any]
    upscaler: Upscaler | None = None
    """What enlarges the pictures; the model may hold another one by then, as with the VAE."""
    ready: Any = None
    """CUDA event after the denoising."""
    pixels: npt.NDArray[np.uint8] | None = None
    finite: list[bool] = field(default_factory=list[bool])


class Finisher(Protocol):
    """What brings denoised groups to an end (`DiffusersEngine`)."""

    def decode_group(self, group: Group) -> None:
        """Bring a group's pixels to the CPU."""
        ...

    def enlarge(self, picture: Picture, upscaler: Upscaler | None) -> Picture:
        """The picture at its final size."""
        ...

    def remake(self, cells: Sequence[Cell]) -> list[Picture] | None:
        """The cells once more in float32, or None when they were in float32."""
        ...


@dataclass(frozen=True, slots=True)
class DiffusersBatch:
    """A denoised batch of a `DiffusersEngine`."""

    engine: Finisher
    size: int
    groups: list[Group]

    def finish(self) -> list[Picture]:
        """Decode what is not decoded yet, try what failed once more in float32, and hand over in the cells' order."""
        for group in self.groups:
            self.engine.decode_group(group)
        pictures = collect(self.groups, self.size, self.engine.enlarge)
        failed = [slot for slot, picture in enumerate(pictures) if picture.fault]
        if failed and (again := self.engine.remake([pictures[slot].cell for slot in failed])) is not None:
            for slot, picture in zip(failed, again, strict=True):
                pictures[slot] = picture
        return pictures


def collect(groups: Sequence[Group], size: int, enlarge: Callable[[Picture, Upscaler | None], Picture]) -> list[Picture]:
    """The finished pictures of decoded groups, in the order of the batch's cells."""
    pictures: dict[int, Picture] = {}
    for group in groups:
        assert group.pixels is not None
        shares = {name: group.facts[name] / len(group.cells) for name in ("encode_s", "denoise_s", "decode_s")}
        for row, (slot, cell) in enumerate(zip(group.slots, group.cells, strict=True)):
            pixels, fault = group.pixels[row], find_fault(group.pixels[row], group.finite[row])
            if cell.source is not None and fault is None:
                pixels = put_back(pixels, cell.source)
            pictures[slot] = enlarge(Picture(cell, pixels, fault, {**group.facts, **shares, "batch_slot": row}), group.upscaler)
    return [pictures[slot] for slot in range(size)]


def facts_of(model: Model, batch_size: int) -> dict[str, Any]:
    """How a batch is made, as rows record it, but for the times."""
    return {
        "batch_size": batch_size,
        "device": "cpu" if model.device.type == "cpu" else torch.cuda.get_device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "retried_fp32": False,
        "applied_keys": {lora.name: (lora.applied_keys, lora.total_keys) for lora in model.loras},
        "versions": _versions(),
    }


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {
        "sdbatch": sdbatch.__version__,
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "transformers": str(transformers.__version__),
    }
