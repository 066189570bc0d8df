"""What the code generator hands to the runtime: a kernel's source and the tensors it was specialised to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

ABI_VERSION = 2
"""Of the three symbols that a kernel exports; part of every cache key.

    extern "C" const int wolong_abi;                      // == ABI_VERSION
    extern "C" void wolong_init(const WolongHost* host);  // once, before the first run
    extern "C" long wolong_run(void** args, int threads, int patience);
        // args: arena, constants, inputs, outputs

`threads` is the image's team size or 1. `patience` is how many microseconds the calling thread may wait for
the others of its team, in all, before it should do the rest of the call alone; one thread never waits. The
result is 0, or n > 0 when bounds check n - 1 failed.
A kernel keeps no mutable state of its own: two threads may run it at once, each with an arena.
"""

ARENA_HEADER_BYTES = 4096
"""Head of every arena: zeroed when it is made, then the kernel's own, for its barrier's flags and epoch."""


@dataclass(frozen=True)
class TensorSpec:
    """The metadata one input or output of a kernel is specialised to; strides count elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))

    @property
    def span_bytes(self) -> int:
        """From the first to one past the last element."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def is_met_by(self, tensor: torch.Tensor, device: str = "cpu") -> bool:
        """Whether a kernel may read `tensor`; the stride of a dimension of one element is never used."""
        if (tensor.dtype, tuple(tensor.shape), tensor.device.type) != (self.dtype, self.shape, device):
            return False
        pairs = zip(tensor.stride(), self.strides, self.shape, strict=True)
        return not tensor.is_neg() and (0 in self.shape or all(a == b for a, b, n in pairs if n > 1))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)} with strides {list(self.strides)}"


@dataclass(frozen=True)
class KernelImage:
    """A kernel before it is built.

    source: one header-free C++ translation unit that follows the ABI above
    flags: compiler flags beyond the common ones (instruction set, defines, sanitizers)
    arena_bytes: per launch, the header included
    constants: read-only bytes the kernel finds at args[1], 64-byte aligned
    inputs, outputs: in argument order; outputs are allocated by the runtime at every launch
    threads: the team size that the kernel's ranges were cut for
    checks: messages of the bounds checks the kernel makes, by number
    name: appears in errors and dumps; no part of the cache key
    """

    source: str
    flags: tuple[str, ...]
    arena_bytes: int
    constants: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int = 1
    checks: tuple[str, ...] = field(default=())
    name: str = "kernel"
