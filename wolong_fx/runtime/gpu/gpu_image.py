"""What the code generator hands to the runtime for a GPU: a program's kernels in two forms, its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wolong_fx.runtime.gpu.launches import StageLaunch, StageLoop
from wolong_fx.runtime.image import TensorSpec

ARENA, CONSTANTS, WORD, FAILURE, FIRST_TENSOR = range(5)
"""Places in the block of addresses that a launch takes; tensors are last, inputs before outputs."""


@dataclass(frozen=True)
class Pointer:
    """A pointer parameter: its name, Triton's type, and the place of its address."""

    name: str
    type: str
    place: int


@dataclass(frozen=True)
class GridText:
    """The kernel `wolong` of a whole program.

    blocks: more than so many would have nothing to do
    meets: whether blocks wait for each other, so that all of them must be resident
    """

    text: str
    pointers: tuple[Pointer, ...]
    blocks: int
    meets: bool


@dataclass(frozen=True)
class StagedText:
    """A kernel for every stage of a program."""

    text: str
    pointers: tuple[Pointer, ...]
    launches: tuple[StageLaunch | StageLoop, ...]


@dataclass(frozen=True)
class GpuImage:
    """A program for a GPU before it is built.

    stages: makes the other form, which most programs never need
    inputs, outputs: in argument order; outputs are allocated at every launch
    written: positions of the inputs that are written in place
    checks: messages of the checks, by number
    constants: bytes that the kernels read, 16-byte aligned
    """

    name: str
    grid: GridText
    stages: Callable[[], StagedText]
    arena_bytes: int
    constants: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    written: tuple[int, ...] = ()
    checks: tuple[str, ...] = ()
    warps: int = 4
