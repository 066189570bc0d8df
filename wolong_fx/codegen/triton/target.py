"""The Triton target: how operators are cut for a GPU, and what their kernel is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wolong_fx.codegen.cost_model import Forecast
from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.triton.emitter import TritonSource, emit_program
from wolong_fx.codegen.triton.gpu_costs import USUAL, GpuCosts
from wolong_fx.codegen.triton.precision import float32_precision
from wolong_fx.codegen.triton.tiles import choose_tile
from wolong_fx.ir.happens_before import Owner
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.ir.types import Buffer


@dataclass(frozen=True)
class TritonTarget:
    """Generated Triton on a GPU.

    precision: of float32 products of matrices, "ieee" or "tf32"
    """

    precision: str

    @classmethod
    def of_settings(cls) -> TritonTarget:
        """The target with the precision that torch's own products of float32 matrices have now."""
        return cls(float32_precision())

    @property
    def costs(self) -> GpuCosts:
        """What work costs on the device."""
        return USUAL

    def choose_tile(self, op: OpInst) -> tuple[int, ...]:
        return choose_tile(op, self.costs, self.precision)

    def pack_operands(self, ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
        return ops

    def estimate(self, elements: Sequence[Element]) -> None:
        return None

    def owner(self, program: Program) -> Owner | None:
        return None  # a block's number decides, and how many blocks there are is known at the launch

    def forecast(self, program: Program) -> Forecast | None:
        return None

    def source_of(self, program: Program) -> str:
        return self.emit(program).text

    def emit(self, program: Program) -> TritonSource:
        """The kernel's source, and what it takes."""
        return emit_program(program, self.precision)
