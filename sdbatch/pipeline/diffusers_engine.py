"""The engine that runs diffusers' models and schedulers, on the CPU or one CUDA device.

A batch is denoised and decoded in `start`; on a GPU that only tells it what to do (`sdbatch.pipeline.device`), and `finish`
waits for the pixels.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from sdbatch.adapters.controlnet import ControlNetBatch, load_picture
from sdbatch.cell import Cell, Picture, Recipe
from sdbatch.pipeline.batch import DiffusersBatch, Group, Job, Span, collect, facts_of
from sdbatch.pipeline.decode import decode, find_fault, latent_shape
from sdbatch.pipeline.denoise import Conditions, Denoiser, InTurn, denoise, gather
from sdbatch.pipeline.device import Decoded, Device
from sdbatch.pipeline.encode import Size
from sdbatch.pipeline.engine import OnStep
from sdbatch.pipeline.flux import FluxDenoiser
from sdbatch.pipeline.hires import enlarge_latents
from sdbatch.pipeline.model import Model
from sdbatch.pipeline.samplers import Draw, build_schedule
from sdbatch.pipeline.start import Course, Pass, Start, Starter, courses_of
from sdbatch.pipeline.unet import UNetDenoiser
from sdbatch.pipeline.upscale import Upscaler, upscale


class DiffusersEngine:
    """Runs cells through diffusers' models.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Of the CPU; None leaves it to torch.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = Device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = Model(self.device)
        self._starter = Starter()
        self._lock = threading.RLock()

    def prepare(self, recipe: Recipe) -> None:
        """Have the recipe's weights in memory with the least work; a file that is in use already is not read again."""
        with self._lock:
            self.device.guard(lambda: self.model.prepare(recipe), "the weights")

    def auto_batch_size(self, cell: Cell) -> int:
        """As many as keep the device busy: by its memory on a GPU, by the size of the picture on the CPU."""
        with self._lock:
            vae_dtype = next(self.model.vae.parameters()).dtype
            return self.device.batch_size(math.prod(cell.decoded_px), self.model.weight_bytes, self.model.dtype, vae_dtype)

    def start(self, cells: Sequence[Cell], on_step: OnStep) -> DiffusersBatch:
        """Denoise the cells; those whose prompts take more chunks than others' go in a pass of their own."""
        with self._lock:
            assert all(cell.recipe == self.model.recipe for cell in cells), "prepare the recipe of the cells first"
            groups = self.device.guard(lambda: self._make(cells, on_step), f"a batch of {len(cells)}")
        return DiffusersBatch(self, len(cells), groups)

    def enlarge(self, picture: Picture, upscaler: Upscaler | None) -> Picture:
        """The picture at its final size, made beside what the device is busy with."""
        cell = picture.cell
        if picture.fault or (upscaler is None and cell.upscale is None):
            return picture
        begun = time.perf_counter()
        with self.device.aside():
            pixels, finite = self.device.guard(
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
                return self.device.guard(lambda: self._remake(cells), f"a batch of {len(cells)} in float32")
            finally:
                if current is not None:
                    self.prepare(current)

    def _remake(self, cells: Sequence[Cell]) -> list[Picture]:
        with self.model.in_float32():
            groups = self._make(cells, lambda done, total: None)
            for group in groups:
                group.decoded.wait()
                group.facts.update(retried_fp32=True)
            return collect(groups, len(cells), self.enlarge)

    @torch.inference_mode()
    def _make(self, cells: Sequence[Cell], on_step: OnStep) -> list[Group]:
        begun = self.device.now()
        jobs = self._encode(cells)
        encoding = Span(begun, self.device.now(), len(cells))
        for job in jobs:
            job.passes = [self._pass(job.cells, course) for course in courses_of(job.cells[0], self.model.family)]
        total = sum(len(own.schedule.timesteps) for job in jobs for own in job.passes)
        done = itertools.count(1)
        return [self._denoise(job, encoding, lambda: on_step(next(done), total)) for job in jobs]

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
            negative = None if self.model.family.distilled_guidance else cell.negative_prompt
            passes = [course.run_steps for course in courses_of(cell, self.model.family)]
            guides = encoder.guide(cell.prompt, negative, passes, cell.clip_skip, strengths)
            jobs.setdefault(guides[0].positive.length, Job([], [], [])).add(Job([slot], [cell], [guides]))
        return [jobs[tokens] for tokens in sorted(jobs)]

    def _pass(self, cells: Sequence[Cell], course: Course) -> Pass:
        seeds = [cell.seed for cell in cells]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        _, rows, columns = latent_shape(self.model.vae, course.size_px)
        draw = Draw(course.steps, seeds, generators, rows * columns // 4, course.skipped_steps)
        return Pass(course, build_schedule(cells[0].sampler, self.model.scheduler_config, draw), generators)

    def _denoise(self, job: Job, encoding: Span, on_step: Callable[[], None]) -> Group:
        begun = self.device.now()
        conditions = self._conditions(job)
        self._set_adapters(job.cells, is_guided=conditions[0].is_guided)
        by_step = iter(conditions)
        latents: Tensor | None = None
        for own in job.passes:
            start = self._start(job.cells, own, latents)
            latents = self._run(job.cells, own, list(itertools.islice(by_step, own.course.run_steps)), start, on_step)
        assert latents is not None
        denoising = Span(begun, self.device.now(), len(job.cells))
        facts = facts_of(self.model, len(job.cells))
        return Group(job.slots, job.cells, latents, self._decode(latents, job.cells[0]), encoding, denoising, facts, self.model.upscaler)

    def _start(self, cells: Sequence[Cell], own: Pass, before: Tensor | None) -> Start:
        """The start of a pass, given the latents of the one before."""
        model = self.model
        if before is None:
            return self._starter.start(cells, own, model.vae, sees_mask=model.sees_mask)
        at_once = self.device.decoded_at_once(cells[0].width * cells[0].height)
        clean = enlarge_latents(before, cells, own, model.vae, model.hires_upscaler, at_once)
        return self._starter.start_on(clean, own, model.vae, sees_mask=model.sees_mask)

    def _run(self, cells: Sequence[Cell], own: Pass, conditions: Sequence[Conditions], start: Start, on_step: Callable[[], None]) -> Tensor:
        """The latents that a pass makes, given what steers it at each step."""
        controls = self._controls(cells, own.size_px)
        distinct = {id(told): told for told in conditions}
        denoisers = {key: self._denoiser(replace(told, controls=controls), own.size_px, start) for key, told in distinct.items()}
        return denoise(InTurn([denoisers[id(told)] for told in conditions]), own.schedule, start.latents_BCHW, on_step, start.kept)

    def _decode(self, latents: Tensor, cell: Cell) -> Decoded:
        vae, at_once = self.model.vae, self.device.decoded_at_once(math.prod(cell.decoded_px))
        return self.device.download(latents, lambda latents: decode(vae, latents, at_once))

    def _conditions(self, job: Job) -> list[Conditions]:
        """What steers a job at each step of its passes, ControlNets aside; steps that are told the same have the same object."""
        dtype = self.model.dtype
        scales = tuple(cell.guidance_scale for cell in job.cells)
        rescales = tuple(cell.guidance_rescale for cell in job.cells)
        known: dict[tuple[int, ...], Conditions] = {}
        found: list[Conditions] = []
        for guides in zip(*job.guides, strict=True):
            told = tuple(map(id, guides))
            if told not in known:
                positive = gather([guide.positive for guide in guides], dtype)
                negatives = [guide.negative for guide in guides if guide.negative is not None]
                negative = gather(negatives, dtype) if negatives else None
                known[told] = Conditions(positive, negative, scales, rescales, ip_adapters=self.model.ip_adapters)
            found.append(known[told])
        return found

    def _set_adapters(self, cells: Sequence[Cell], *, is_guided: bool) -> None:
        """Set what is attached to the denoiser to the strengths and pictures of these cells."""
        repeat = 2 if is_guided else 1
        if (stack := self.model.stack(self.model.family.denoiser)) is not None:
            stack.set_cells([cell.strengths for cell in cells], repeat)
        if self.model.hypernetworks is not None:
            self.model.hypernetworks.set_strengths(torch.tensor([cell.hypernetwork_weights for cell in cells]).repeat(repeat, 1))
        if self.model.ip_adapters is not None:
            self.model.ip_adapters.set_prompts([cell.image_prompts for cell in cells], is_guided=is_guided)

    def _denoiser(self, conditions: Conditions, size_px: Size, start: Start) -> Denoiser:
        network = self.model.denoiser
        if self.model.family.denoiser == "transformer":
            return FluxDenoiser(network, conditions, latent_shape(self.model.vae, size_px)[1:])
        return UNetDenoiser(network, conditions, size_px, start.beside_BCHW, with_aesthetics=self.model.with_aesthetics)

    def _controls(self, cells: Sequence[Cell], size_px: Size) -> tuple[ControlNetBatch, ...]:
        batches: list[ControlNetBatch] = []
        for index, net in enumerate(self.model.controlnets):
            controls = [cell.controls[index] for cell in cells]
            pictures = torch.stack([_cached_picture(control, *size_px) for control in controls])
            batches.append(
                ControlNetBatch(
                    net,
                    pictures.to(self.device.torch, self.model.dtype),
                    tuple(control.weight for control in controls),
                    tuple((control.start, control.end) for control in controls),
                )
            )
        return tuple(batches)


_cached_picture = lru_cache(maxsize=64)(load_picture)
