"""A batch on its way through the engine: jobs to denoise, groups whose pixels are on their way, pictures in the cells' order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import diffusers
import torch
import transformers
from torch import Tensor

import sdbatch
from sdbatch.cell import Cell, Picture
from sdbatch.pipeline.decode import find_fault
from sdbatch.pipeline.device import Decoded, seconds
from sdbatch.pipeline.engine import OutOfMemory
from sdbatch.pipeline.model import Model
from sdbatch.pipeline.picture import put_back
from sdbatch.pipeline.start import Pass
from sdbatch.pipeline.text import Guide
from sdbatch.pipeline.upscale import Upscaler

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """The cells of a batch whose prompts take the same number of chunks: what is denoised at once."""

    slots: list[int]
    """Their places in the batch."""
    cells: list[Cell]
    guides: list[tuple[Guide, ...]]
    """What each cell's prompts tell at each step that is run, of all passes."""
    passes: list[Pass] = field(default_factory=list[Pass])

    def add(self, other: Job) -> None:
        """Take the cells of another job in."""
        self.slots += other.slots
        self.cells += other.cells
        self.guides += other.guides


@dataclass(frozen=True, slots=True)
class Span:
    """What some images took together, from one point in time of the device to another (`Device.now`)."""

    begun: Any
    done: Any
    images: int

    def each_s(self) -> float:
        """Of one image."""
        return seconds(self.begun, self.done) / self.images


@dataclass(frozen=True, slots=True)
class Group:
    """A denoised job; its decoding is told to the device, and done when its pixels have been waited for."""

    slots: list[int]
    cells: list[Cell]
    latents: Tensor
    decoded: Decoded
    encoding: Span
    denoising: Span
    facts: dict[str, Any]
    upscaler: Upscaler | None
    """What enlarges the pictures; the model may hold another one by then."""

    def facts_each(self) -> dict[str, Any]:
        """What is recorded of each picture."""
        decoding = Span(self.decoded.begun, self.decoded.done, len(self.cells))
        spans = {"encode_s": self.encoding, "denoise_s": self.denoising, "decode_s": decoding}
        return self.facts | {name: span.each_s() for name, span in spans.items()}


class Finisher(Protocol):
    """What brings denoised groups to an end (`DiffusersEngine`)."""

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
        """Wait for the pixels, try what failed once more in float32, and hand over in the cells' order."""
        pictures = collect(self.groups, self.size, self.engine.enlarge)
        failed = [slot for slot, picture in enumerate(pictures) if picture.fault]
        if failed and (again := self._remake([pictures[slot].cell for slot in failed])) is not None:
            for slot, picture in zip(failed, again, strict=True):
                pictures[slot] = picture
        return pictures

    def _remake(self, cells: Sequence[Cell]) -> list[Picture] | None:
        try:
            return self.engine.remake(cells)
        except OutOfMemory as error:
            log.warning("%d pictures are at fault and are not tried again in float32: %s", len(cells), error)
            return None


def collect(groups: Sequence[Group], size: int, enlarge: Callable[[Picture, Upscaler | None], Picture]) -> list[Picture]:
    """The finished pictures of decoded groups, in the order of the batch's cells."""
    pictures: dict[int, Picture] = {}
    for group in groups:
        images, finite = group.decoded.wait()
        facts = group.facts_each()
        for row, (slot, cell) in enumerate(zip(group.slots, group.cells, strict=True)):
            pixels, fault = images[row], find_fault(images[row], finite[row])
            if cell.source is not None and fault is None:
                pixels = put_back(pixels, cell.source)
            pictures[slot] = enlarge(Picture(cell, pixels, fault, {**facts, "batch_slot": row}), group.upscaler)
    return [pictures[slot] for slot in range(size)]


def facts_of(model: Model, batch_size: int) -> dict[str, Any]:
    """How a batch is made, as rows record it, but for the times."""
    device, versions = model.device.facts()
    return {
        "batch_size": batch_size,
        "device": device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "retried_fp32": False,
        "applied_keys": {lora.name: (lora.applied_keys, lora.total_keys) for lora in model.loras},
        "versions": _versions() | versions,
    }


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {
        "sdbatch": sdbatch.__version__,
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "transformers": str(transformers.__version__),
    }
