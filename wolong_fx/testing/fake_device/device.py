"""The fake device itself, and a target that compiles for it."""

from __future__ import annotations

import ctypes
import itertools
import pickle
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wolong_fx.codegen.triton.gpu_target import GpuTarget
from wolong_fx.codegen.triton.image import gpu_image_of
from wolong_fx.errors import DriverFailed
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu import ARCHITECTURES, Architecture, TritonBinary, TritonImage
from wolong_fx.runtime.gpu.device import Allocate, KernelCall, NoRoom, Run
from wolong_fx.runtime.gpu.gpu_image import GpuImage
from wolong_fx.runtime.gpu.kernel import GpuKernel
from wolong_fx.runtime.image import TensorSpec
from wolong_fx.testing.fake_device.execution import Frame, spans_of
from wolong_fx.testing.fake_device.memory import Memory
from wolong_fx.testing.fake_device.queues import Graph, Mark, Queues, Violation, Work

POISON = 0xFF
"""Every byte of memory that was just lent: NaN as a float, -1 as an integer."""

SCRATCH_PARAMETERS = 2
"""What Triton adds to every kernel."""

_capture_numbers = itertools.count(1)


@dataclass(frozen=True)
class LaunchRecord:
    """A launch that the runtime asked for.

    capture: number of the capture that it went into
    word: address of its barrier's word, 0 without one
    """

    kernel: str
    blocks: int
    cooperative: bool
    stream: int
    capture: int | None
    word: int


class _Thread(threading.local):
    """What CUDA and torch keep for each thread."""

    stream = 0
    graph: Graph | None = None
    is_current = True


@dataclass
class FakeDevice:
    """A device with a few multiprocessors; see the package.

    blocks_of_multiprocessor: what the driver says of occupancy
    room: blocks of a cooperative launch that really fit now: fewer, when somebody else has the rest
    is_lazy: whether work waits until `synchronize`
    failing: names of calls that fail once, and how many calls before that do not
    """

    multiprocessors: int = 3
    blocks_of_multiprocessor: int = 1
    room: int | None = None
    can_cooperate: bool = True
    is_lazy: bool = False
    seed: int = 0
    launches: list[LaunchRecord] = field(default_factory=list)
    built: list[TritonImage] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    failing: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thread = _Thread()
        self._queues = Queues(self.is_lazy, random.Random(self.seed))
        self.memory = Memory(lambda stream: not self._queues.streams[stream])
        self._functions: list[TritonImage] = []
        self._spans: dict[str, dict[str, int]] = {}
        self._seeds = itertools.count(self.seed)

    # ---- what tests do with it

    def know(self, image: GpuImage) -> None:
        """Learn how large the memory behind a program's pointers is: addresses do not say."""
        spans = spans_of(image)
        self._spans |= {image.grid.text: spans, image.stages().text: spans}

    def build(self, image: TritonImage) -> TritonBinary:
        """A binary that only this device can load."""
        self._note("build")
        self.built.append(image)
        parameters = ".param " * (len(image.signature) + SCRATCH_PARAMETERS)
        assembly = f".visible .entry {image.kernel}({parameters})"
        return TritonBinary(pickle.dumps(image), assembly, 64, 0, 1024, image.warps, image.architecture)

    @contextmanager
    def on_stream(self, stream: int) -> Iterator[None]:
        """Another current stream, in this thread."""
        before, self._thread.stream = self._thread.stream, stream
        try:
            yield
        finally:
            self._thread.stream = before

    @contextmanager
    def capturing(self) -> Iterator[Graph]:
        """Record what is launched inside, in this thread, into a graph with a pool of its own."""
        self._thread.graph = graph = Graph(next(_capture_numbers))
        try:
            yield graph
        finally:
            self._thread.graph = None

    def replay(self, graph: Graph) -> None:
        """Launch a graph on the current stream."""
        self._put(graph.run)

    def synchronize(self) -> None:
        """Wait for everything. Not during a capture."""
        self._forbid_in_capture("a synchronisation")
        self._queues.drain()

    @contextmanager
    def another_is_current(self) -> Iterator[None]:
        """Torch's current device is another one inside."""
        self._thread.is_current = False
        try:
            yield
        finally:
            self._thread.is_current = True

    # ---- what the runtime asks: see runtime/gpu/device.py

    @property
    def architecture(self) -> Architecture:
        return replace(ARCHITECTURES["sm_90"], device="fake", multiprocessors=self.multiprocessors)

    def is_current(self) -> bool:
        return self._thread.is_current

    @contextmanager
    def selected(self) -> Iterator[None]:
        self._thread.is_current = True
        try:
            yield
        finally:
            self._thread.is_current = False

    def load(self, code: bytes) -> int:
        self._forbid_in_capture("loading a module")
        self._note("load")
        self._functions.append(pickle.loads(code))
        return len(self._functions) - 1

    def find_function(self, module: int, name: str, shared_bytes: int) -> int:
        if self._functions[module].kernel != name:
            raise Violation(f"module {module} has no kernel {name!r}")
        return module

    def resident_blocks(self, function: int, warps: int, shared_bytes: int) -> int:
        return self.blocks_of_multiprocessor * self.multiprocessors

    def prepare(self, call: KernelCall) -> Run:
        image = self._functions[call.function]
        if (call.blocks, call.warps) != (image.blocks, image.warps):
            raise Violation(f"{image.kernel} is launched on another grid than it was compiled for")
        return partial(self._launch, call, image)

    def stream(self) -> int:
        self._check_current()
        return self._thread.stream

    def find_capture(self) -> int | None:
        self._check_current()
        return self._thread.graph.number if self._thread.graph else None

    def zero(self, tensor: Tensor) -> None:
        self._put(partial(ctypes.memset, tensor.data_ptr(), 0, tensor.nbytes))

    def allocator(self, spec: TensorSpec) -> Allocate:
        return partial(self._allocate, spec)

    def upload(self, content: bytes) -> Tensor:
        self._forbid_in_capture("a copy from the host")
        tensor = self._allocate(TensorSpec(torch.uint8, (len(content),), (1,)))
        self._queues.drain()
        ctypes.memmove(tensor.data_ptr(), content, len(content))
        return tensor

    def shared_words(self, count: int) -> Tensor:
        self._forbid_in_capture("allocating pinned memory")
        return torch.zeros(count, dtype=torch.int32)

    def mark(self) -> Mark:
        self._forbid_in_capture("a mark that outlives it")
        mark = Mark()
        self._put(mark.reach)
        return mark

    def wait_for(self, mark: Any) -> None:
        self._forbid_in_capture("waiting for a mark from outside")
        self._queues.put(self.stream(), mark)

    def use_on_stream(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.memory.use_on(tensor, self.stream())

    def __deepcopy__(self, memo: object) -> FakeDevice:
        return self

    # ---- how

    def _launch(self, call: KernelCall, image: TritonImage, stream: int) -> None:
        self._check_current()
        if stream != self._thread.stream:
            raise Violation(f"a launch on stream {stream} while {self._thread.stream} is current")
        self._note("launch")
        has_room = self.room is None or call.blocks <= self.room
        if call.cooperative and not (self.can_cooperate and has_room and call.blocks <= self._resident):
            raise NoRoom
        frame = Frame.read(image, call.parameters)
        frame.check_alignment()
        number = self.find_capture()
        word = frame.values.get("word", 0)
        self.launches.append(LaunchRecord(image.kernel, call.blocks, call.cooperative, stream, number, word))
        self._put(lambda: frame.execute(self._spans[image.text], next(self._seeds)))

    @property
    def _resident(self) -> int:
        return self.blocks_of_multiprocessor * self.multiprocessors

    def _allocate(self, spec: TensorSpec) -> Tensor:
        self._check_current()
        graph = self._thread.graph
        tensor, block = self.memory.lend(spec, graph if graph else self._thread.stream)
        self._put(partial(ctypes.memset, block.address, POISON, block.size))
        return tensor

    def _put(self, work: Work) -> None:
        """Queue work on the current stream, or record it."""
        if self._thread.graph is not None:
            self._thread.graph.works.append(work)
        else:
            self._queues.put(self._thread.stream, work)

    def _note(self, name: str) -> None:
        """Count a call, and let it fail if it is to."""
        self.calls[name] += 1
        if self.failing.get(name) == 0:
            del self.failing[name]
            raise DriverFailed(call=name, device="fake", status=999, because="the test says so")
        if name in self.failing:
            self.failing[name] -= 1

    def _check_current(self) -> None:
        if not self._thread.is_current:
            raise Violation("another device is current")

    def _forbid_in_capture(self, what: str) -> None:
        if self._thread.graph is not None:
            raise Violation(f"{what} during a capture")


@dataclass(frozen=True)
class FakeTarget(GpuTarget):
    """Inside `compile_for(FakeTarget.on(device))`, models on the CPU are compiled for a fake device."""

    @classmethod
    def on(cls, device: FakeDevice, options: Options | None = None) -> FakeTarget:
        return cls("ieee", options or Options(), device, device.build)

    def build(self, program: Program) -> GpuKernel:
        assert isinstance(self.device, FakeDevice)
        self.device.know(gpu_image_of(program, self.precision))
        return super().build(program)
