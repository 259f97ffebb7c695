"""A GPU made of the CPU's memory, for machines without one.

It computes what it is told with the CPU's kernels, and refuses or notes what a GPU would get wrong:

* an operation over tensors of both devices, or a generator of the other one, is an error, as torch has it;
* a copy to pinned memory that nobody waits for has not arrived: the memory holds garbage until the host waits;
* streams run beside each other: memory that one writes and another touches without an event between them is a race;
* memory goes back to the stream it was taken on, so that another stream that may still use it must have said so;
* memory ends: beyond `capacity_bytes` an allocation fails as torch's does.

What it cannot tell: how fast a GPU is, how its kernels round, which of its kernels are missing.
"""

from __future__ import annotations

# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten: Any = torch.ops.aten
Clock = dict["Stream", int]
"""How many operations of each stream are known to be done."""

_HOST_READS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
_MIXES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Take indices from the CPU, and wait for them."""
GARBAGE = 0x55


def merge(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


class Stream:
    """A queue of operations."""

    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu = gpu
        self.name = name
        self.clock: Clock = {}
        self.copies: list[tuple[int, Callable[[], object]]] = []
        """To the host, not done before the host waits."""

    def launch(self) -> int:
        merge(self.clock, self.gpu.host)
        self.clock[self] = self.clock.get(self, 0) + 1
        return self.clock[self]

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.gpu)
        merge(self.clock, self.gpu.host)
        event.clock, event.at_s = dict(self.clock), time.perf_counter()
        return event

    def wait_event(self, event: Event) -> None:
        merge(self.clock, event.clock)

    def synchronize(self) -> None:
        self.gpu.wait(self.clock)


class Event:
    """A place in a queue."""

    def __init__(self, gpu: Gpu, enable_timing: bool = False) -> None:
        self.gpu = gpu
        self.timing = enable_timing
        self.clock: Clock = {}
        self.at_s = 0.0

    def synchronize(self) -> None:
        self.gpu.wait(self.clock)

    def elapsed_time(self, end: Event) -> float:
        assert self.timing and end.timing, "both events need enable_timing=True"
        assert all(self.gpu.host.get(stream, 0) >= count for stream, count in end.clock.items()), "the later event has not been waited for"
        return (end.at_s - self.at_s) * 1000


@dataclass(eq=False)
class Memory:
    """One allocation, and who touched it."""

    gpu: Gpu
    owner: Stream
    size_bytes: int
    written: tuple[Stream, int] | None = None
    read: Clock = field(default_factory=dict[Stream, int])
    recorded: set[Stream] = field(default_factory=set[Stream])

    def touch(self, stream: Stream, count: int, what: str, *, writes: bool) -> None:
        before = dict([self.written]) if self.written else {}
        if writes:
            merge(before, self.read)
        for other, done in before.items():
            if other is not stream and stream.clock.get(other, 0) < done:
                self.gpu.faults.append(f"{what} on the {stream.name} stream races with the {other.name} stream")
        if writes:
            self.written, self.read = (stream, count), {}
        else:
            self.read[stream] = count

    def __del__(self) -> None:
        self.gpu.used_bytes -= self.size_bytes
        used = dict(self.read)
        merge(used, dict([self.written]) if self.written else {})
        known = dict(self.owner.clock)
        merge(known, self.gpu.host)
        for stream, done in used.items():
            if stream is not self.owner and stream not in self.recorded and known.get(stream, 0) < done:
                self.gpu.faults.append(f"memory of the {self.owner.name} stream is given back while the {stream.name} stream may use it")


class GpuTensor(Tensor):
    """A tensor that says it is on the GPU."""

    held: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls: Any, held: Tensor, memory: Memory) -> GpuTensor:
        place: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": "cuda:0"}
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(cls, held.size(), **place)
        made.held, made.memory = held, memory
        return made

    def record_stream(self, s: Any) -> None:
        self.memory.recorded.add(s)

    # Torch goes to the device for these before it asks anybody.
    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return self if self.is_contiguous(memory_format=memory_format) else self.clone(memory_format=memory_format)

    def __getitem__(self, index: Any) -> Any:
        return self.memory.gpu.index(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.memory.gpu.put(self, index, value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a tensor of the GPU is used outside of its mode")


class Gpu(TorchDispatchMode):
    """The device and its runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity_bytes = 2**40
        self.used_bytes = self.peak_bytes = 0
        self.waits = 0
        """How often the host has waited for the device."""
        self.faults: list[str] = []
        self.host: Clock = {}
        self.streams: list[Stream] = []
        self._default = self.stream("default")
        self._thread = threading.local()
        self._lock = threading.RLock()
        self._pinned: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its import takes seconds

    def stream(self, name: str) -> Stream:
        self.streams.append(Stream(self, name))
        return self.streams[-1]

    @property
    def current(self) -> Stream:
        """Of this thread."""
        return getattr(self._thread, "stream", self._default)

    @current.setter
    def current(self, stream: Stream) -> None:
        self._thread.stream = stream

    def wait(self, clock: Clock) -> None:
        """The host waits until so much is done."""
        with self._lock:
            self._wait(clock)

    def _wait(self, clock: Clock) -> None:
        self.waits += 1
        merge(self.host, clock)
        for stream in self.streams:
            done = self.host.get(stream, 0)
            for _, copy in (due for due in stream.copies if due[0] <= done):
                with torch.inference_mode():
                    copy()
            stream.copies = [due for due in stream.copies if due[0] > done]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self._lock:
            return self._dispatch(func, args, dict(kwargs or {}))

    def _dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        inputs = [value for value in flat if isinstance(value, GpuTensor)]
        goes_up = any(isinstance(value, torch.device) and value.type == "cuda" for value in flat)
        if not inputs and not goes_up:
            is_pinned = kwargs.pop("pin_memory", None)
            found = func(*args, **kwargs)
            if is_pinned:
                found.view(torch.uint8).fill_(GARBAGE)
                self._pinned.add(id(found))
            return found
        if func is aten._fused_sdp_choice.default:
            return 0  # the plain arithmetic: others are kernels of one device
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func.overloadpacket in (aten._to_copy, aten.to):
            given = {argument.name: value for argument, value in _bind(func, args, kwargs) if value is not None}
            return self._to(given.pop("self"), **given)
        return self._compute(func, args, kwargs, inputs)

    def index(self, source: GpuTensor, index: Any) -> Any:
        """`source[index]`, a view or what tensors pick."""
        inputs = [source, *(value for value in tree_flatten(index)[0] if isinstance(value, GpuTensor))]
        found = source.held[_lower(index)]
        count = self.current.launch()
        if found.untyped_storage().data_ptr() != source.held.untyped_storage().data_ptr():
            for value in inputs:
                value.memory.touch(self.current, count, "index", writes=False)
        return self._wrap(found, [source], {}, count)

    def put(self, target: GpuTensor, index: Any, value: Any) -> None:
        """`target[index] = value`."""
        aten.fill_ if not isinstance(value, Tensor) else self._check_places(aten.copy_.default, (target, value), {})
        target.memory.touch(self.current, self.current.launch(), "put", writes=True)
        target.held[_lower(index)] = _lower(value)

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any], inputs: list[GpuTensor]) -> Any:
        self._check_places(func, args, kwargs)
        is_read = func in _HOST_READS or torch.Tag.dynamic_output_shape in func.tags
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        held = {id(value.held): value for value in inputs}
        found = func(*_lower(args), **_lower(kwargs))
        if func.is_view:
            return tree_map(lambda value: self._wrap(value, inputs, held), found)
        count = self.current.launch()
        written = {id(value) for value in _written(func, args, kwargs)}
        for value in inputs:
            value.memory.touch(self.current, count, str(func), writes=id(value) in written)
        if is_read:
            self.current.synchronize()
        return tree_map(lambda value: self._wrap(value, inputs, held, count), found)

    def _wrap(self, value: Any, inputs: Iterable[GpuTensor], held: dict[int, GpuTensor], count: int = 0) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in held:
            assert held[id(value)].shape == value.shape, "an operation in place that changes a shape is not known here"
            return held[id(value)]
        start = value.untyped_storage().data_ptr()
        for other in inputs:
            if start and other.held.untyped_storage().data_ptr() == start:
                with torch.inference_mode(other.is_inference()):
                    return GpuTensor(value, other.memory)
        size = value.untyped_storage().nbytes()
        if self.used_bytes + size > self.capacity_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return GpuTensor(value, Memory(self, self.current, size, (self.current, count)))

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        count = self.current.launch()
        is_down, is_up = not isinstance(target, GpuTensor), not isinstance(source, GpuTensor)
        if isinstance(target, GpuTensor):
            target.memory.touch(self.current, count, "copy", writes=True)
        if isinstance(source, GpuTensor):
            source.memory.touch(self.current, count, "copy", writes=False)
        to, values = _lower(target), _lower(source)
        if is_down and non_blocking and id(target) in self._pinned:
            values = values.clone()
            self.current.copies.append((count, lambda: to.copy_(values)))
            return target
        if is_down or (is_up and not non_blocking):
            self.current.synchronize()
        to.copy_(values)
        return target

    def _to(self, source: Tensor, other: Tensor | None = None, device: Any = None, **options: Any) -> Tensor:
        """`Tensor.to`, whichever of its forms."""
        if other is not None:
            device, options["dtype"] = other.device, other.dtype
        is_async, is_copy = options.pop("non_blocking", False), options.pop("copy", False)
        goes_down = device is not None and torch.device(device).type == "cpu"
        if isinstance(source, GpuTensor) and not goes_down:
            if not is_copy and options.get("dtype", source.dtype) == source.dtype and "memory_format" not in options:
                return source
            return self._compute(aten._to_copy.default, (source,), options, [source])
        count = self.current.launch()
        if not is_async or goes_down:
            self.current.synchronize()
        if not isinstance(source, GpuTensor):
            return self._wrap(aten._to_copy.default(source, **options), (), {}, count)
        source.memory.touch(self.current, count, "download", writes=False)
        return aten._to_copy.default(source.held, **options)

    def _check_places(self, func: Any, args: Any, kwargs: Any) -> None:
        flat, _ = tree_flatten((args, kwargs))
        for value in flat:
            if isinstance(value, torch.Generator):
                raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{value.device}' ({func})")
            if isinstance(value, GpuTensor) or not isinstance(value, Tensor):
                continue
            if value.dim() == 0 and torch.Tag.pointwise in func.tags:
                continue
            if func not in _MIXES:
                raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
            self.current.synchronize()


def _lower(values: Any) -> Any:
    return tree_map(lambda value: value.held if isinstance(value, GpuTensor) else value, values)


def _bind(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The arguments of an operation as its schema has them, with their values."""
    given = func._schema.arguments
    return [(argument, args[index] if index < len(args) else kwargs.get(argument.name)) for index, argument in enumerate(given)]


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """What an operation writes to in place."""
    named = [value for argument, value in _bind(func, args, kwargs) if argument.alias_info and argument.alias_info.is_write]
    return tree_flatten(named)[0]


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Generator[Gpu]:
    """Torch with this GPU as its only one."""
    gpu = Gpu()
    names = cycle(("decoding", "enlarging"))

    @contextmanager
    def on(stream: Stream) -> Generator[None]:
        before, gpu.current = gpu.current, stream
        try:
            yield
        finally:
            gpu.current = before

    def synchronize(device: object = None) -> None:
        for stream in gpu.streams:
            stream.synchronize()

    runtime: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: including_emulation,
        "get_device_name": lambda device=None: "Paper GPU",
        "get_device_properties": lambda device: type("Properties", (), {"total_memory": gpu.capacity_bytes}),
        "Stream": lambda device=None: gpu.stream(next(names)),
        "Event": lambda enable_timing=False, blocking=False: Event(gpu, enable_timing),
        "current_stream": lambda device=None: gpu.current,
        "stream": on,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
    }

    class Thread(threading.Thread):
        """Any thread may use the device."""

        def run(self) -> None:
            torch._C._set_only_lift_cpu_tensors(True)
            with gpu:
                super().run()

    monkeypatch.setattr(threading, "Thread", Thread)
    for name, value in runtime.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    # A tensor's content cannot be exchanged here, as modules do it; they take new tensors instead.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # as fake tensors have it: `torch.tensor` makes its tensor on the CPU, then moves it
    try:
        with gpu:
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
