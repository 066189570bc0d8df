"""A real GPU: the driver's calls, with torch's streams and allocator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from wolong_fx import _torch_compat
from wolong_fx.errors import NoGpu
from wolong_fx.runtime.gpu import libcuda
from wolong_fx.runtime.gpu.architectures import Architecture
from wolong_fx.runtime.gpu.device import Allocate, KernelCall, Run
from wolong_fx.runtime.gpu.libcuda import WARP, LibCuda, find_libcuda
from wolong_fx.runtime.image import TensorSpec

_modules: dict[tuple[int, bytes], int] = {}
_modules_change = threading.Lock()


class CudaDevice:
    """The device of this number, as torch counts: CUDA_VISIBLE_DEVICES applies to both."""

    def __init__(self, index: int, driver: LibCuda) -> None:
        self.index, self._driver = index, driver
        self._current_device = torch.cuda.current_device
        self._current_stream: Callable[[int], int] = _torch_compat.find_current_raw_stream()
        self._is_capturing = torch.cuda.is_current_stream_capturing
        self.architecture = self._find_architecture()
        self.can_cooperate = bool(self._attribute(libcuda.COOPERATIVE_LAUNCH))

    def _find_architecture(self) -> Architecture:
        """As the driver says: a part of a device (MIG, MPS) has fewer multiprocessors than the whole."""
        ask = self._attribute
        capability = 10 * ask(libcuda.MAJOR) + ask(libcuda.MINOR)
        return Architecture(
            name=f"sm_{capability}",
            capability=capability,
            device=self._driver.device_name(self.index),
            multiprocessors=ask(libcuda.MULTIPROCESSORS),
            registers=ask(libcuda.REGISTERS_OF_MULTIPROCESSOR),
            shared_bytes=ask(libcuda.SHARED_OF_MULTIPROCESSOR),
            largest_shared=ask(libcuda.SHARED_OF_BLOCK_AT_MOST),
            threads=ask(libcuda.THREADS_OF_MULTIPROCESSOR),
            blocks=ask(libcuda.BLOCKS_OF_MULTIPROCESSOR),
        )

    def is_current(self) -> bool:
        return self._current_device() == self.index

    def selected(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.index)

    def load(self, code: bytes) -> int:
        key = (self.index, sha256(code).digest())
        with _modules_change:
            if key not in _modules:
                self._driver.enter_context(self.index)
                _modules[key] = self._driver.load(self.index, code)
            return _modules[key]

    def find_function(self, module: int, name: str, shared_bytes: int) -> int:
        return self._driver.find_function(self.index, module, name, shared_bytes)

    def resident_blocks(self, function: int, warps: int, shared_bytes: int) -> int:
        of_one = self._driver.blocks_of_multiprocessor(self.index, function, WARP * warps, shared_bytes)
        return of_one * self.architecture.multiprocessors

    def prepare(self, call: KernelCall) -> Run:
        return self._driver.prepare(self.index, call)

    def stream(self) -> int:
        return self._current_stream(self.index)

    def find_capture(self) -> int | None:
        # Torch's question is the quicker one, and hardly ever answered with yes.
        return self._driver.find_capture(self.index, self.stream()) if self._is_capturing() else None

    def zero(self, tensor: Tensor) -> None:
        self._driver.zero(self.index, tensor.data_ptr(), tensor.nbytes, self.stream())

    def allocator(self, spec: TensorSpec) -> Allocate:
        empty, shape, strides, dtype = _torch_compat.find_empty_strided_cuda(), *_parts(spec)
        return lambda: empty(shape, strides, dtype)

    def upload(self, content: bytes) -> Tensor:
        host = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return host.to(torch.device("cuda", self.index))

    def shared_words(self, count: int) -> Tensor:
        # With unified addressing the device knows pinned memory by the host's address.
        return torch.zeros(count, dtype=torch.int32, device="cpu", pin_memory=True)

    def mark(self) -> Any:
        return torch.cuda.current_stream(self.index).record_event()

    def wait_for(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.index).wait_event(mark)

    def use_on_stream(self, tensors: Sequence[Tensor]) -> None:
        stream = torch.cuda.current_stream(self.index)
        for tensor in tensors:
            tensor.record_stream(stream)

    def _attribute(self, number: int) -> int:
        return self._driver.attribute(self.index, number)

    def __reduce__(self) -> tuple[Callable[..., CudaDevice], tuple[int]]:
        return find_cuda_device, (self.index,)


@cache
def find_cuda_device(index: int) -> CudaDevice:
    """The device of this number; raises NoGpu where nothing can be launched on it."""
    if torch.version.hip:
        raise NoGpu(device=f"cuda:{index}", because="launches on AMD's GPUs are not there yet")
    if not torch.cuda.is_available():
        raise NoGpu(device=f"cuda:{index}", because="this torch sees no CUDA device")
    return CudaDevice(index, find_libcuda())


def _parts(spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return spec.shape, spec.strides, spec.dtype
