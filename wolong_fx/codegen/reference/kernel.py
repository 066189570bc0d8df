"""A program as a kernel: the reference machine behind the interface of a compiled one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.program import Program


class ReferenceKernel:
    """Runs a program on the reference machine; called as a compiled kernel is (`Options.target="reference"`).

    seed: of the order of virtual blocks; None draws a new order at every launch
    """

    def __init__(self, program: Program, seed: int | None = None) -> None:
        self.program = program
        self.seed = seed

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.launch(inputs)

    def launch(self, inputs: Sequence[Tensor], bound: Sequence[Tensor] = ()) -> list[Tensor]:
        """Fresh outputs for these inputs and those bound before; raises what `run_program` raises."""
        return run_program(self.program, [*inputs, *bound], seed=self.seed)

    def bind(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The last inputs of launches to come."""
        return tensors

    def keep_together(self, positions: Collection[int]) -> None:
        """Nothing: every output has memory of its own, which is where to look for a fault."""

    def launch_with(self, helpers: object) -> None:
        """Nothing: it reads tensors."""

    def __repr__(self) -> str:
        return f"ReferenceKernel({self.program.name!r})"
