"""The CPU or one GPU: number formats, memory layout, streams, what fits, and what a lack of memory looks like.

On a GPU work is queued, not done, when a call returns. Denoising is queued on torch's current stream. Each batch is decoded on
a stream of its own behind it and copied from there to pinned memory, so that the next batch's denoising is queued meanwhile;
nothing waits for it but who reads the pixels, on another thread. There finished pictures are enlarged on a third stream, which
waits for neither.

What a device computes depends on its model, on versions and on shapes: cuDNN's deterministic kernels by its heuristics, never by
trial; TF32 in convolutions of float32 and nowhere else.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sdbatch.errors import ConfigError, DeviceError, did_you_mean
from sdbatch.pipeline.engine import OutOfMemory

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_CPU_BATCH_PIXELS = 4 * 512 * 512
_CPU_BATCH_LIMIT = 16
_GPU_BATCH_LIMIT = 32
_GPU_BYTES_PER_PIXEL = 2000
"""Activations of an SD 1.x UNet with guidance per pixel of the picture and byte of its numbers, rounded up."""
_DECODE_BYTES_PER_PIXEL = 2500
"""The same of a VAE's decoder."""
_DECODE_PIXELS = {"cpu": 4 * 128 * 128, "cuda": 512 * 512}
"""Larger batches are decoded in parts: on the CPU so that activations stay near its caches (16 pictures of 128 pixels
take 1.3 times as long at once as by fours), on a GPU so that they fit beside the next batch's."""
_GPU_SHARE = 0.9
"""Of a GPU's memory; CUDA's own context and what lies scattered take the rest."""

_NO_MEMORY = ("allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""How torch's CPU allocator, CUDA outside of torch's allocator, cuBLAS and cuDNN say it; torch's GPU allocator has its own class."""


class Device:
    """One device, by torch's name of it: `cpu`, `cuda`, `cuda:N`.

    Side effects: makes a GPU this process's current one and sets how it rounds.

    Raises:
        DeviceError: torch cannot use it.
    """

    def __init__(self, name: str = "cpu") -> None:
        self.torch = torch.device(name)
        self.is_gpu = self.torch.type == "cuda"
        if not self.is_gpu:
            return
        if not torch.cuda.is_available():
            built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
            raise DeviceError(f"memory.device={name}: torch {torch.__version__} {built} and finds no GPU. `sdbatch doctor` says more.")
        self.torch = torch.device("cuda", self.torch.index or 0)
        torch.cuda.set_device(self.torch)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # pyright: ignore[reportAttributeAccessIssue]
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        self._decoding = torch.cuda.Stream(self.torch)
        self._enlarging = torch.cuda.Stream(self.torch)
        self._enlarges = threading.RLock()
        """Held while a picture is enlarged, which may be on another thread than the one that denoises."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a recipe here: `auto` is float32 on the CPU, else bfloat16, or float16 where that would be emulated.

        Raises:
            ConfigError: no such dtype.
        """
        if name == "auto":
            if not self.is_gpu:
                return torch.float32
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        if name not in DTYPES:
            raise ConfigError(f"dtype: there is no {name!r}. {did_you_mean(name, ('auto', *DTYPES))}")
        return DTYPES[name]

    def place(self, module: nn.Module) -> nn.Module:
        """The module in this device's memory, in the layout its convolutions like best."""
        return module.to(self.torch, memory_format=torch.channels_last) if self.is_gpu else module  # pyright: ignore[reportCallIssue]

    def batch_size(self, pixels: int, weight_bytes: int, dtype: torch.dtype, vae_dtype: torch.dtype) -> int:
        """How many pictures of so many pixels keep it busy: by their size on the CPU, by the memory on a GPU.

        Args:
            pixels: Of one picture.
            weight_bytes: What the weights take.
            dtype: Of the model.
            vae_dtype: Of its VAE, which decodes beside the next batch.
        """
        if not self.is_gpu:
            return min(_CPU_BATCH_LIMIT, max(1, _CPU_BATCH_PIXELS // pixels))
        decode_bytes = self.decoded_at_once(pixels) * pixels * _DECODE_BYTES_PER_PIXEL * vae_dtype.itemsize
        total = torch.cuda.get_device_properties(self.torch).total_memory
        room = int(total * _GPU_SHARE) - weight_bytes - decode_bytes
        fits = max(1, room // (pixels * _GPU_BYTES_PER_PIXEL * dtype.itemsize))
        return min(_GPU_BATCH_LIMIT, 1 << (fits.bit_length() - 1))

    def decoded_at_once(self, pixels: int) -> int:
        """How many pictures of so many pixels to decode at once."""
        return max(1, _DECODE_PIXELS[self.torch.type] // pixels)

    def facts(self) -> tuple[str, dict[str, str]]:
        """The device's model as rows name it, and the versions that only it depends on."""
        if not self.is_gpu:
            return "cpu", {}
        return torch.cuda.get_device_name(self.torch), {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}

    def now(self) -> Any:
        """A point in time: on a GPU that at which it has done what the current stream was told so far. Who waits for it sleeps."""
        if not self.is_gpu:
            return time.perf_counter()
        return torch.cuda.current_stream(self.torch).record_event(torch.cuda.Event(enable_timing=True, blocking=True))

    def settle(self) -> None:
        """Wait until all that was told is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def guard(self, work: Callable[[], T], what: str, todo: str = "Lower batch_size, or leave it to `auto`.") -> T:
        """Do the work. On a GPU work that does not fit is tried again alone, so that no batch shrinks by what ran beside it.

        Raises:
            OutOfMemory: it did not fit; what it took is given back.
        """
        reason = ""
        for beside in (nullcontext(), self._enlarges) if self.is_gpu else (nullcontext(),):
            try:
                with beside:
                    return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0].rstrip(".") if str(error) else "no memory left"
            # Here the failed call's frames are gone, so that their tensors can be freed.
            self.settle()
            gc.collect()
            if self.is_gpu:
                torch.cuda.empty_cache()
        raise OutOfMemory(f"{what} did not fit the memory of {self.torch}: {reason}. {todo}")

    def download(self, latents_BCHW: Tensor, decode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Decoded:
        """Have latents decoded and their pixels brought to the CPU, on a GPU behind the current stream without waiting for it."""
        if not self.is_gpu:
            begun = self.now()
            pixels, finite = decode(latents_BCHW)
            return Decoded(pixels, finite, begun, self.now())
        ready = self.now()
        with torch.cuda.stream(self._decoding):
            self._decoding.wait_event(ready)
            latents_BCHW.record_stream(self._decoding)
            begun = self.now()
            pixels, finite = (_to_pinned(tensor) for tensor in decode(latents_BCHW))
            return Decoded(pixels, finite, begun, self.now())

    @contextmanager
    def aside(self) -> Generator[None]:
        """What is told inside waits for no batch."""
        if not self.is_gpu:
            yield
            return
        with self._enlarges, torch.cuda.stream(self._enlarging):
            yield


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels on their way to the CPU."""

    pixels_BHW3: Tensor
    finite_B: Tensor
    begun: Any
    done: Any
    """See `Device.now`."""

    def wait(self) -> tuple[npt.NDArray[np.uint8], list[bool]]:
        """The pixels, and whether each picture is finite, when they have arrived."""
        if not isinstance(self.done, float):
            self.done.synchronize()
        return self.pixels_BHW3.numpy(), self.finite_B.tolist()


def seconds(begun: Any, done: Any) -> float:
    """Between two points in time of `Device.now`; on a GPU the later one must have passed."""
    return done - begun if isinstance(begun, float) else begun.elapsed_time(done) / 1000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short; the device is well then."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def _to_pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, whole when the current stream has come so far. Torch keeps both ends of the copy until then."""
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
