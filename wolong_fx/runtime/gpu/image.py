"""What a kernel for a GPU is made from."""

from __future__ import annotations

from dataclasses import dataclass

from wolong_fx.runtime.gpu.architectures import Architecture


@dataclass(frozen=True)
class TritonImage:
    """What a binary is made from.

    text: a module with the kernel
    pointers: Triton's type of every pointer argument but the words', by name and in order
    blocks: of the grid
    warps, stages: of a block; steps of a loop that loads may run ahead
    kernel: its name
    loops: None for the whole program; of one stage, how many loops are around it
    """

    text: str
    pointers: tuple[tuple[str, str], ...]
    architecture: Architecture
    blocks: int
    warps: int = 4
    stages: int = 3
    kernel: str = "wolong"
    loops: int | None = None

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of every parameter but the constant G, by name and in order."""
        if self.loops is None:
            return {**dict(self.pointers), "word": "*u32", "failure": "*i32"}
        trips = {f"t{depth}": "i32" for depth in range(self.loops)}
        return {**dict(self.pointers), **trips, "failure": "*i32"}

    @property
    def is_cooperative(self) -> bool:
        """Whether its blocks may wait for each other."""
        return self.loops is None
