"""What launches ask of a GPU: a few calls of CUDA's driver, and torch's streams and memory.

`cuda_device.py` answers with a real one. `wolong_fx.testing.fake_device` answers with a machine of tensors on
the CPU that refuses what CUDA refuses, so that everything above can be tested anywhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from wolong_fx.runtime.gpu.architectures import Architecture
from wolong_fx.runtime.image import TensorSpec

Allocate = Callable[[], Tensor]
Run = Callable[[int], None]
"""Launches on the stream of this handle; raises NoRoom or DriverFailed."""


class NoRoom(Exception):
    """The device cannot hold all blocks of a cooperative launch together now."""


@dataclass(frozen=True)
class KernelCall:
    """A launch but for its stream.

    function: as `Device.find_function` gave it
    warps, shared_bytes: of a block
    parameters: the address of each parameter's value, which is read there at every launch
    cooperative: all blocks are to run at once, or the launch is refused
    """

    function: int
    blocks: int
    warps: int
    shared_bytes: int
    parameters: ctypes.Array[ctypes.c_void_p]
    cooperative: bool


class Device(Protocol):
    """One GPU. Unless said otherwise, calls are for torch's current device, which must be this one."""

    @property
    def architecture(self) -> Architecture:
        """What this device, or the part of it that we were given, has; multiprocessors included."""
        ...

    @property
    def can_cooperate(self) -> bool:
        """Whether it has cooperative launches at all."""
        ...

    def is_current(self) -> bool:
        """Whether it is torch's current device in this thread."""
        ...

    def selected(self) -> AbstractContextManager[object]:
        """Make it the current device inside."""
        ...

    def load(self, code: bytes) -> int:
        """A module of the machine code, loaded for as long as the process lives: graphs may hold on to it.

        Raises DriverFailed.
        """
        ...

    def find_function(self, module: int, name: str, shared_bytes: int) -> int:
        """A kernel of a module, ready for blocks with so much shared memory; raises DriverFailed."""
        ...

    def resident_blocks(self, function: int, warps: int, shared_bytes: int) -> int:
        """Blocks of a kernel that the device holds together, as its driver says."""
        ...

    def prepare(self, call: KernelCall) -> Run:
        """What launches so, as cheaply as can be."""
        ...

    def stream(self) -> int:
        """Handle of torch's current stream."""
        ...

    def find_capture(self) -> int | None:
        """A number of the graph capture that the current stream takes part in; None if it runs."""
        ...

    def zero(self, tensor: Tensor) -> None:
        """Zero a tensor's memory in the order of the current stream; in a capture, at every replay."""
        ...

    def allocator(self, spec: TensorSpec) -> Allocate:
        """What makes tensors of this description, their content undefined, for the current stream."""
        ...

    def upload(self, content: bytes) -> Tensor:
        """These bytes on the device, there when this returns. Not during a capture."""
        ...

    def shared_words(self, count: int) -> Tensor:
        """Zeroed int32 that the device writes and the host reads at the same address, without waiting."""
        ...

    def mark(self) -> Any:
        """The end of all that is on the current stream by now."""
        ...

    def wait_for(self, mark: Any) -> None:
        """Have the current stream wait for a mark, not the host."""
        ...

    def use_on_stream(self, tensors: Sequence[Tensor]) -> None:
        """Memory of these is not used anew before all that is on the current stream by then is done."""
        ...
