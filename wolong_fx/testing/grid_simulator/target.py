"""Models compiled for the simulated grid: everything but the GPU as it is for users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wolong_fx.codegen.reference import ReferenceKernel
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.ir.program import Program
from wolong_fx.testing.grid_simulator.client import simulate


class SimulatedKernel(ReferenceKernel):
    """A Triton kernel behind the interface of a compiled one; every launch draws another order."""

    def __init__(self, program: Program, blocks: int) -> None:
        super().__init__(program, seed=0)
        self.blocks = blocks
        self.launches = 0

    def launch(self, inputs: Sequence[Tensor], bound: Sequence[Tensor] = ()) -> list[Tensor]:
        self.launches += 1
        given = [*inputs, *bound]
        return simulate(self.program, given, blocks=self.blocks, seed=self.launches, switching=0.01).outputs


@dataclass(frozen=True)
class SimulatedTarget(TritonTarget):
    """Inside `compile_for(SimulatedTarget("ieee", blocks=3))`, models get kernels on that many blocks."""

    blocks: int = 1

    def build(self, program: Program) -> SimulatedKernel:
        return SimulatedKernel(program, self.blocks)
