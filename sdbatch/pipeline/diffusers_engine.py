"""The engine that runs diffusers' models and schedulers, on the CPU or one CUDA device.

A batch is denoised in `start`. On a GPU it is decoded in `finish`, on a stream of its own beside the next batch's
denoising; on the CPU in `start`, as the cores are busy either way.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdbatch.adapters.controlnet import ControlNetBatch, load_picture
from sdbatch.cell import Cell, Picture, Recipe
from sdbatch.pipeline.batch import DiffusersBatch, Group, Job, collect, facts_of
from sdbatch.pipeline.decode import decode, find_fault, latent_shape
from sdbatch.pipeline.denoise import Conditions, Denoiser, denoise, gather
from sdbatch.pipeline.engine import OnStep, OutOfMemory
from sdbatch.pipeline.flux import FluxDenoiser
from sdbatch.pipeline.model import Model
from sdbatch.pipeline.samplers import Draw, build_schedule
from sdbatch.pipeline.start import Starter
from sdbatch.pipeline.text import pad
from sdbatch.pipeline.unet import UNetDenoiser
from sdbatch.pipeline.upscale import Upscaler, upscale

T = TypeVar("T")

_CPU_BATCH_PIXELS = 4 * 512 * 512
_CPU_BATCH_LIMIT = 16
_GPU_BATCH_LIMIT = 32
_GPU_BYTES_PER_PIXEL = 4000
"""Activations of an SD 1.x UNet with guidance in half precision, per pixel of the picture, rounded up."""


class DiffusersEngine:
    """Runs cells through diffusers' models.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Of the CPU; None leaves it to torch.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = torch.device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = Model(self.device)
        self._starter = Starter()
        self._lock = threading.RLock()
        self._side: Any = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True

    def prepare(self, recipe: Recipe) -> None:
        """Have the recipe's weights in memory with the least work; a file that is in use already is not read again."""
        with self._lock:
            self._guarded(lambda: self.model.prepare(recipe), "the weights")

    def auto_batch_size(self, cell: Cell) -> int:
        """As many as keep the device busy: by its memory on a GPU, by the size of the picture on the CPU."""
        pixels = cell.width * cell.height
        if self.device.type == "cpu":
            return min(_CPU_BATCH_LIMIT, max(1, _CPU_BATCH_PIXELS // pixels))
        memory = torch.cuda.get_device_properties(self.device).total_memory - self.model.weight_bytes
        fits = max(1, int(memory * 0.6) // (pixels * _GPU_BYTES_PER_PIXEL))
        return min(_GPU_BATCH_LIMIT, 1 << (fits.bit_length() - 1))

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> DiffusersBatch:
        """Denoise the cells; those whose prompts take more chunks than others' go in a pass of their own."""
        with self._lock:
            assert all(cell.recipe == self.model.recipe for cell in cells), "prepare the recipe of the cells first"
            groups = self._guarded(lambda: self._make(cells, on_step), f"a batch of {len(cells)}")
        return DiffusersBatch(self, len(cells), groups)

    def decode_group(self, group: Group) -> None:
        """Bring a group's pixels to the CPU, on the side stream of a GPU."""
        if group.pixels is None:
            self._guarded(lambda: self._decode(group), f"the decode of a batch of {len(group.cells)}")

    def enlarge(self, picture: Picture, upscaler: Upscaler | None) -> Picture:
        """The picture at its final size, made on the side stream of a GPU."""
        cell = picture.cell
        if picture.fault or (upscaler is None and cell.upscale is None):
            return picture
        begun = time.perf_counter()
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            pixels, finite = self._guarded(
                lambda: upscale(picture.pixels, upscaler, cell.upscale, cell.tile_px), "a picture to enlarge", "Lower upscaler.tile_px."
            )
        facts = picture.facts | {"decode_s": picture.facts["decode_s"] + time.perf_counter() - begun}
        return Picture(cell, pixels, find_fault(pixels, finite), facts)

    def remake(self, cells: Sequence[Cell]) -> list[Picture] | None:
        """The cells once more in float32, or None when they were in float32."""
        with self._lock:
            current = self.model.recipe
            self.prepare(cells[0].recipe)
            try:
                if self.model.dtype is torch.float32:
                    return None
                with self.model.in_float32():
                    groups = self._guarded(lambda: self._make(cells, lambda done, total: None), f"a batch of {len(cells)} in float32")
                    for group in groups:
                        self.decode_group(group)
                        group.facts |= {"retried_fp32": True, "dtype": "float32"}
                return collect(groups, len(cells), self.enlarge)
            finally:
                if current is not None:
                    self.prepare(current)

    def _guarded(self, work: Callable[[], T], what: str, todo: str = "Lower batch_size, or leave it to `auto`.") -> T:
        """Do the work; out of memory, give back what it took before saying so."""
        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else "no memory left"
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            reason = str(error).splitlines()[0]
        gc.collect()  # here the failed call's frames are gone, so that their tensors can be freed
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(f"{what} did not fit the memory of {self.device}: {reason}. {todo}")

    @torch.inference_mode()
    def _make(self, cells: Sequence[Cell], on_step: OnStep) -> list[Group]:
        begun = time.perf_counter()
        jobs = self._encode(cells)
        for job in jobs:
            self._begin(job)
        encode_s = time.perf_counter() - begun
        total = sum(len(job.schedule.timesteps) for job in jobs if job.schedule)
        groups: list[Group] = []
        done = 0
        for job in jobs:
            group = self._denoise(job, lambda step, before=done: on_step(before + step, total))
            group.facts["encode_s"] = encode_s * len(job.cells) / len(cells)
            done += len(job.schedule.timesteps) if job.schedule else 0
            if self.device.type == "cpu":
                self._decode(group)
            groups.append(group)
        return groups

    def _encode(self, cells: Sequence[Cell]) -> list[Job]:
        """The cells' prompts as embeddings, cells with equally long ones together."""
        encoder = self.model.encoder
        assert encoder is not None, "no recipe is prepared"
        names = [tower.encoder.component for tower in encoder.towers]
        stacks = [stack for name in names if (stack := self.model.stack(name)) is not None]
        jobs: dict[int, Job] = {}
        for slot, cell in enumerate(cells):
            strengths = tuple(weight for stack in stacks for weight in stack.weigh(cell.strengths))
            for stack in stacks:
                stack.set_cells([cell.strengths])
            positive = encoder.encode(cell.prompt, cell.clip_skip, strengths)
            job = Job([slot], [cell], [positive], [])
            if not self.model.family.distilled_guidance:
                negative = encoder.encode_negative(cell.negative_prompt, cell.clip_skip, strengths)
                tokens = max(positive.length, negative.length)
                empty, nothing = (give("", cell.clip_skip, strengths) for give in (encoder.encode, encoder.encode_negative))
                job = Job([slot], [cell], [pad(positive, tokens, empty)], [pad(negative, tokens, nothing)])
            jobs.setdefault(job.positive[0].length, Job([], [], [], [])).add(job)
        return [jobs[tokens] for tokens in sorted(jobs)]

    def _begin(self, job: Job) -> None:
        """Set up the steps of a job, and what it starts from."""
        first, seeds = job.cells[0], [cell.seed for cell in job.cells]
        job.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        _, rows, columns = latent_shape(self.model.vae, (first.width, first.height))
        skipped = None if first.source is None else self.model.family.skipped_steps(first.steps, first.source.strength)
        draw = Draw(first.steps, seeds, job.generators, rows * columns // 4, skipped)
        job.schedule = build_schedule(first.sampler, self.model.scheduler_config, draw)
        job.start = self._starter.start(job.cells, job.generators, job.schedule, self.model.vae, sees_mask=self.model.sees_mask)

    def _denoise(self, job: Job, on_step: Callable[[int], None]) -> Group:
        assert job.schedule is not None
        assert job.start is not None
        begun = time.perf_counter()
        dtype = self.model.dtype
        conditions = Conditions(
            gather(job.positive, dtype),
            gather(job.negative, dtype) if job.negative else None,
            tuple(cell.guidance_scale for cell in job.cells),
            self._controls(job.cells),
            self.model.ip_adapters,
        )
        repeat = 2 if conditions.is_guided else 1
        if (stack := self.model.stack(self.model.family.denoiser)) is not None:
            stack.set_cells([cell.strengths for cell in job.cells], repeat)
        if self.model.hypernetworks is not None:
            self.model.hypernetworks.set_strengths(torch.tensor([cell.hypernetwork_weights for cell in job.cells]).repeat(repeat, 1))
        if self.model.ip_adapters is not None:
            self.model.ip_adapters.set_prompts([cell.image_prompts for cell in job.cells], is_guided=conditions.is_guided)
        denoiser = self._denoiser(conditions, job.cells[0], job.start.beside_BCHW)
        latents = denoise(denoiser, job.schedule, job.start.latents_BCHW, on_step, job.start.kept)
        group = Group(job.slots, job.cells, self.model.vae, latents, facts_of(self.model, len(job.cells)), self.model.upscaler)
        group.facts["denoise_s"] = time.perf_counter() - begun
        if self._side is not None:
            group.ready = torch.cuda.current_stream(self.device).record_event()
        return group

    def _denoiser(self, conditions: Conditions, cell: Cell, beside: Tensor | None) -> Denoiser:
        network, size_px = self.model.denoiser, (cell.width, cell.height)
        if self.model.family.denoiser == "transformer":
            return FluxDenoiser(network, conditions, latent_shape(self.model.vae, size_px)[1:])
        return UNetDenoiser(network, conditions, size_px, beside, with_aesthetics=self.model.with_aesthetics)

    def _controls(self, cells: Sequence[Cell]) -> tuple[ControlNetBatch, ...]:
        batches: list[ControlNetBatch] = []
        for index, net in enumerate(self.model.controlnets):
            controls = [cell.controls[index] for cell in cells]
            pictures = torch.stack([_cached_picture(control, cells[0].width, cells[0].height) for control in controls])
            batches.append(
                ControlNetBatch(
                    net,
                    pictures.to(self.device, self.model.dtype),
                    tuple(control.weight for control in controls),
                    tuple((control.start, control.end) for control in controls),
                )
            )
        return tuple(batches)

    @torch.inference_mode()
    def _decode(self, group: Group) -> None:
        begun = time.perf_counter()
        if self._side is None:
            pixels, finite = decode(group.vae, group.latents)
            group.pixels = pixels.numpy()
        else:
            with torch.cuda.stream(self._side):
                self._side.wait_event(group.ready)
                group.latents.record_stream(self._side)
                on_device, finite = decode(group.vae, group.latents)
                pixels = torch.empty(on_device.shape, dtype=torch.uint8, pin_memory=True)
                pixels.copy_(on_device, non_blocking=True)
                self._side.synchronize()
            group.pixels = pixels.numpy()
        group.finite = [bool(is_finite) for is_finite in finite.tolist()]
        group.facts["decode_s"] = time.perf_counter() - begun


_cached_picture = lru_cache(maxsize=64)(load_picture)
