"""What a kernel for a GPU is made from."""

from __future__ import annotations

from dataclasses import dataclass

from wolong_fx.runtime.gpu.architectures import Architecture


@dataclass(frozen=True)
class TritonImage:
    """What a binary is made from.

    text: a module with the kernel `wolong`
    pointers: Triton's type of every pointer argument but the last two, by name and in order
    blocks: of the grid
    warps, stages: of a block; steps of a loop that loads may run ahead
    """

    text: str
    pointers: tuple[tuple[str, str], ...]
    architecture: Architecture
    blocks: int
    warps: int = 4
    stages: int = 3
