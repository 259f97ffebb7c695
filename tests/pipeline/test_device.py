"""The engine on a GPU, as far as a machine without one can tell: see `tests.pipeline.gpu` for what is noticed and what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdbatch.cell import Cell, Control, ImagePrompt, Mask, Picture, Source, Strength
from sdbatch.errors import DeviceError
from sdbatch.families import FAMILIES, SAMPLERS
from sdbatch.pipeline.batch import DiffusersBatch
from sdbatch.pipeline.device import Device, is_out_of_memory
from sdbatch.pipeline.diffusers_engine import DiffusersEngine
from sdbatch.pipeline.engine import OutOfMemory
from tests.adapters.form_parts import FORMS
from tests.adapters.ip_adapter_files import prepare
from tests.adapters.table_files import in_form
from tests.adapters.test_hypernetwork import CASES, write
from tests.pipeline import upscalers
from tests.pipeline.gpu import Gpu, fake_gpu
from tests.pipeline.models import TinyModel, build_controlnet, build_pipeline, make_cell, original_vae, save, write_picture
from tests.pipeline.test_tasks import write_mask
from tests.pipeline.zoo import ZOO, Zoo

GB = 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Generator[Gpu]:
    """The only GPU there is, at which nothing may have gone wrong in the end."""
    with fake_gpu(monkeypatch) as gpu:
        yield gpu
    assert gpu.faults == []


def start(engine: DiffusersEngine, cells: Sequence[Cell]) -> DiffusersBatch:
    engine.prepare(cells[0].recipe)
    return engine.start(cells, lambda done, total: None)


def latents(batch: DiffusersBatch) -> torch.Tensor:
    rows = {slot: group.latents[row] for group in batch.groups for row, slot in enumerate(group.slots)}
    return torch.stack([rows[slot] for slot in range(batch.size)]).cpu()


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Convolutions round by the layout of their inputs, which differs."""
    return float((ours - theirs).abs().max() / theirs.std()) < 1e-3


def assert_as_on_the_cpu(cells: Sequence[Cell]) -> None:
    ours, theirs = (start(DiffusersEngine(device, 1), cells) for device in ("cuda", "cpu"))
    assert near(latents(ours), latents(theirs))
    for one, other in zip(ours.finish(), theirs.finish(), strict=True):
        assert one.fault is None
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 2


def cells_of(model: TinyModel, recipe: Any = None, **changes: Any) -> list[Cell]:
    """Two images that differ in all that one batch may hold."""
    recipe = recipe or model.recipe(dtype="float32")
    sampler = SAMPLERS["flow_euler" if model.family == "flux" else "euler"]
    prompts = ("a red cat", "a (blue:1.3) dog, " + "red " * 70)
    values = {"sampler": sampler, "steps": 3, **changes}
    return [make_cell(recipe, seed=seed, prompt=prompt, guidance_scale=2.0 + seed, **values) for seed, prompt in enumerate(prompts)]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ZOO)
def test_every_family(name: str, zoo: Zoo) -> None:
    assert_as_on_the_cpu(cells_of(zoo(name)))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["sd1", "flux_dev"])
def test_every_sampler_draws_the_same_noise(name: str, zoo: Zoo) -> None:
    """One of each kind: their noise levels are numbers of the CPU."""
    model, card, cpu = zoo(name), DiffusersEngine("cuda", 1), DiffusersEngine("cpu", 1)
    levels = ("use_", "timestep_")
    samplers = [SAMPLERS[sampler] for sampler in FAMILIES[model.family].samplers]
    kinds = {(sampler.scheduler, *(pair for pair in sampler.options if not pair[0].startswith(levels))): sampler for sampler in samplers}
    for sampler in kinds.values():
        cells = [make_cell(model.recipe(dtype="float32"), sampler=sampler, steps=3, guidance_scale=1.0, seed=seed) for seed in (1, 2)]
        assert near(latents(start(card, cells)), latents(start(cpu, cells)))
    torch.cuda.synchronize()


@pytest.fixture
def everything(model: TinyModel, tmp_path: Path) -> list[Cell]:
    """A mixed batch with every kind of adapter at once."""
    pipeline = model.pipeline
    loras = tuple(save(in_form(pipeline, form).tensors, tmp_path / f"form{index}.safetensors") for index, form in enumerate(FORMS))
    prompts = prepare(model, ("plain", "plus"), tmp_path)
    recipe = model.recipe(
        dtype="float32",
        loras=loras,
        embeddings=(save({"emb_params": torch.randn(2, 32)}, tmp_path / "style.safetensors"),),
        hypernetworks=(write(tmp_path / "hyper.pt", CASES["layer norm"])[0],),
        controlnets=(save(build_controlnet(pipeline).state_dict(), tmp_path / "edges.safetensors"),),
        ip_adapters=prompts.adapters,
        image_encoders=(prompts.encoder,),
    )
    pictures = [str(write_picture(tmp_path / f"{seed}.png", seed)) for seed in range(2)]
    rows = ((0.1, 1.0, "ALL"), (-0.05, 0.5, "OUTALL"))
    return [
        make_cell(
            recipe,
            seed=seed,
            prompt="a style cat",
            strengths=tuple(Strength(weight, weight / 2, blocks) for _ in loras),
            hypernetwork_weights=(weight,),
            controls=(Control(pictures[seed], str(seed), weight=0.3, end=end),),
            image_prompts=tuple(ImagePrompt(pictures[seed], str(seed), 0.2, end=end) for _ in range(2)),
        )
        for seed, (weight, end, blocks) in enumerate(rows)
    ]


@pytest.mark.usefixtures("gpu")
def test_every_adapter_at_once(everything: list[Cell]) -> None:
    assert_as_on_the_cpu(everything)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["sd2", "sdxl", "flux_dev"])
def test_adapters_of_other_families(name: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo(name)
    forms = ("LoRA", "LoHa", "DoRA") if name != "flux_dev" else ("LoHa", "DoRA")
    loras = tuple(save(in_form(model.pipeline, form).tensors, tmp_path / f"{form}.safetensors") for form in forms)
    stacks: dict[str, Any] = {"loras": loras}
    inputs: dict[str, Any] = {"strengths": tuple(Strength(0.3, 0.2) for _ in loras)}
    if name == "sdxl":
        prompts = prepare(model, ("plain",), tmp_path)
        pair = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
        stacks |= {"ip_adapters": prompts.adapters, "image_encoders": (prompts.encoder,)}
        stacks |= {"embeddings": (save(pair, tmp_path / "red.safetensors"),)}
        stacks |= {"controlnets": (save(build_controlnet(model.pipeline).state_dict(), tmp_path / "edges.safetensors"),)}
        picture = str(write_picture(tmp_path / "picture.png"))
        inputs |= {"image_prompts": (ImagePrompt(picture, "0", 0.5),), "controls": (Control(picture, "0", weight=0.5),)}
    assert_as_on_the_cpu(cells_of(model, model.recipe(dtype="float32", **stacks), **inputs))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux_dev"])
def test_pictures_to_start_from_and_to_enlarge(name: str, zoo: Zoo, tmp_path: Path) -> None:
    mask = Mask(str(write_mask(tmp_path / "mask.png")), "mask", fill="noise")
    source = Source(str(write_picture(tmp_path / "source.png", 3)), "source", 0.7)
    for start_from in (source, replace(source, mask=mask)):
        assert_as_on_the_cpu(cells_of(zoo(name), source=start_from, steps=4, upscale=1.5))


def test_a_batch_waits_for_no_other(gpu: Gpu, model: TinyModel, tmp_path: Path) -> None:
    engine = DiffusersEngine("cuda", 1)
    cells = cells_of(model, model.recipe(dtype="float32", upscaler=upscalers.write("esrgan_x4", tmp_path)))
    expected = [picture.pixels for picture in start(engine, cells).finish()]
    first, second = start(engine, cells), start(engine, cells[::-1])
    pictures = first.finish()
    told = gpu.streams[0].clock[gpu.streams[0]]
    assert gpu.host[gpu.streams[0]] < told, "the second batch was waited for"
    for one, other in zip([*pictures, *second.finish()[::-1]], [*expected, *expected], strict=True):
        np.testing.assert_array_equal(one.pixels, other)
        assert all(one.facts[name] > 0 for name in ("encode_s", "denoise_s", "decode_s"))
    assert (pictures[0].facts["device"], pictures[0].facts["dtype"]) == ("Paper GPU", "float32")
    assert {"cuda", "cudnn"} <= set(pictures[0].facts["versions"])
    start(engine, cells)  # and let go of at once, as by a worker that is stopped
    engine.device.settle()


def test_no_step_waits_for_the_device(gpu: Gpu, everything: list[Cell]) -> None:
    engine = DiffusersEngine("cuda", 1)
    start(engine, [replace(cell, steps=1) for cell in everything[:1]]).finish()
    waits: list[int] = []
    for steps in (2, 4):
        before = gpu.waits
        batch = engine.start([replace(cell, steps=steps) for cell in everything[:1]], lambda done, total: None)
        waits.append(gpu.waits - before)
        batch.finish()
    assert waits[0] == waits[1]


def test_weights_change_under_no_batch_that_is_still_in_the_making(gpu: Gpu, model: TinyModel, tmp_path: Path) -> None:
    """Swapped for the next recipe, or in float32 for a picture that half precision could not hold."""
    other = save(original_vae(build_pipeline(tmp_path / "vocabulary", 4).vae), tmp_path / "soft.safetensors")
    engine = DiffusersEngine("cuda", 1)
    cells = cells_of(model, model.recipe(dtype="bfloat16"))
    swapped = [replace(cell, recipe=replace(cell.recipe, vae=other)) for cell in cells]
    expected = [start(engine, some).finish() for some in (cells, swapped)]
    batches = [start(engine, some) for some in (cells, swapped, cells)]
    spoilt = batches[0].groups[0]
    gpu.wait(spoilt.decoded.done.clock)
    spoilt.decoded.finite_B.numpy()[0] = False
    found = [batch.finish() for batch in batches]
    assert [picture.facts["retried_fp32"] for picture in found[0]] == [True, False]
    assert found[0][0].facts["dtype"] == "float32"
    assert np.abs(found[0][0].pixels.astype(int) - expected[0][0].pixels).mean() < 20
    for ours, theirs in ((found[1], expected[1]), (found[2], expected[0])):
        for one, same in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.pixels, same.pixels)


@pytest.mark.usefixtures("gpu")
def test_a_batch_is_finished_on_another_thread_while_the_next_is_denoised(model: TinyModel, tmp_path: Path) -> None:
    """Pictures enlarged by a network, one of them made again in float32 when the engine is free."""
    engine = DiffusersEngine("cuda", 1)
    cells = cells_of(model, model.recipe(dtype="bfloat16", upscaler=upscalers.write("compact_x2", tmp_path)), steps=2)
    expected = [picture.pixels for picture in start(engine, cells).finish()]
    first, found = start(engine, cells), list[list[Picture]]()
    first.groups[0].decoded.wait()
    first.groups[0].decoded.finite_B.numpy()[0] = False
    thread = threading.Thread(target=lambda: found.append(first.finish()))
    stepped: list[int] = []

    def on_step(done: int, total: int) -> None:
        stepped.append(done)
        if done == 1:
            thread.start()

    second = engine.start(cells, on_step)
    thread.join()
    assert len(stepped) == cells[0].steps
    assert [picture.facts["retried_fp32"] for picture in found[0]] == [True, False]
    np.testing.assert_array_equal(found[0][1].pixels, expected[1])
    for picture, pixels in zip(second.finish(), expected, strict=True):
        np.testing.assert_array_equal(picture.pixels, pixels)


def test_a_network_that_half_precision_spoils_enlarges_again_in_float32(gpu: Gpu, model: TinyModel, tmp_path: Path) -> None:
    engine = DiffusersEngine("cuda", 1)
    cell = make_cell(model.recipe(dtype="float16", upscaler=upscalers.write("compact_x2", tmp_path)), steps=1, guidance_scale=1.0)
    engine.prepare(cell.recipe)
    assert engine.model.upscaler
    dtypes: list[torch.dtype] = []

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        dtypes.append(output.dtype)
        return output if output.dtype is torch.float32 else output * float("nan")

    engine.model.upscaler.module.register_forward_hook(spoil)
    (picture,) = start(engine, [cell]).finish()
    assert picture.fault is None and dtypes == [torch.float16, torch.float32]


def test_what_does_not_fit_gives_back_what_it_took(gpu: Gpu, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine("cuda", 1)
    cells = [make_cell(model.recipe(dtype="float32"), seed=seed) for seed in range(6)]
    start(engine, cells[:2]).finish()
    before, gpu.capacity_bytes = gpu.used_bytes, gpu.peak_bytes
    with pytest.raises(OutOfMemory, match=r"a batch of 6 did not fit the memory of cuda:0: CUDA out of memory"):
        start(engine, cells)
    assert gpu.used_bytes == before
    assert len(start(engine, cells[:2]).finish()) == 2
    gpu.capacity_bytes = 2**40
    forward, failed = engine.model.denoiser.forward, list[int]()

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model.denoiser, "forward", fail_once)
    assert len(start(engine, cells).finish()) == 6, "what does not fit beside another batch is tried alone"


@pytest.mark.usefixtures("gpu")
def test_what_does_not_fit_beside_a_picture_that_is_enlarged_is_tried_when_that_is_done() -> None:
    device, begun, failed = Device("cuda"), threading.Event(), threading.Event()
    left: list[str] = []

    def enlarge() -> None:
        with device.aside():
            begun.set()
            assert failed.wait(10)
            time.sleep(0.1)
            left.append("the picture")

    def work() -> str:
        if not failed.is_set():
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return left[0]

    thread = threading.Thread(target=enlarge)
    thread.start()
    assert begun.wait(10)
    assert device.guard(work, "a batch") == "the picture"
    thread.join()


@pytest.mark.parametrize("native", [True, False])
def test_number_formats(gpu: Gpu, native: bool, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16 in hardware: float16, but for the parts that overflow in it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    engine, model = DiffusersEngine("cuda", 1), zoo("flux_dev")
    batch = start(engine, cells_of(model, model.recipe()))
    parts = {**engine.model.components, "vae": engine.model.vae}
    found = {name: next(part.parameters()).dtype for name, part in parts.items()}
    half = torch.bfloat16 if native else torch.float16
    expected = {"transformer": half, "text_encoder": half, "text_encoder_2": torch.bfloat16, "vae": half if native else torch.float32}
    assert found == expected
    convolution = next(weight for weight in engine.model.vae.parameters() if weight.dim() == 4 and min(weight.shape) > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert all(picture.fault is None for picture in batch.finish())


HALF, FULL = torch.float16, torch.float32


@pytest.mark.parametrize(
    ("total_gb", "weights_gb", "size_px", "dtype", "vae", "batch"),
    [
        pytest.param(16, 2, 512, HALF, FULL, 8, id="SD 1.5 on a T4"),
        pytest.param(24, 7, 1024, HALF, HALF, 2, id="SDXL on 24 GB"),
        pytest.param(80, 7, 1024, HALF, HALF, 8, id="SDXL on 80 GB"),
        pytest.param(80, 34, 1024, HALF, HALF, 8, id="FLUX on 80 GB"),
        pytest.param(80, 2, 512, HALF, HALF, 32, id="SD 1.5 on 80 GB"),
        pytest.param(40, 4, 512, FULL, FULL, 8, id="SD 1.5 in float32 on 40 GB"),
        pytest.param(24, 34, 1024, HALF, HALF, 1, id="what cannot fit"),
    ],
)
def test_batch_sizes(gpu: Gpu, total_gb: int, weights_gb: int, size_px: int, dtype: torch.dtype, vae: torch.dtype, batch: int) -> None:
    gpu.capacity_bytes = total_gb * GB
    assert Device("cuda").batch_size(size_px**2, weights_gb * GB, dtype, vae) == batch


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("allocate memory"), False),
    ],
)
def test_what_says_that_memory_is_short(error: Exception, is_short: bool) -> None:
    assert is_out_of_memory(error) == is_short


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_told() -> None:
    with pytest.raises(DeviceError, match=r"memory\.device=cuda: torch .* finds no GPU"):
        DiffusersEngine("cuda", 1)


def test_the_gpu_of_these_tests_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as gpu:
        a = torch.ones(4, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            a.add(torch.ones(4))
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(4, device="cuda", generator=torch.Generator("cpu"))
        arrived = torch.empty(4, pin_memory=True).copy_(a, non_blocking=True)
        assert not torch.equal(arrived, torch.ones(4))
        gpu.current.synchronize()
        assert torch.equal(arrived, torch.ones(4))
        assert gpu.faults == []
        other: Any = torch.cuda.Stream()
        a.add_(1)
        with torch.cuda.stream(other):
            b = a * 2
        assert gpu.faults.pop().endswith("on the decoding stream races with the default stream")
        del a
        assert gpu.faults.pop() == "memory of the default stream is given back while the decoding stream may use it"
        del b
        assert gpu.faults == []
