"""Panels: the order in which a micro-kernel reads a matrix, a few vectors of columns at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.types import Buffer

COLUMN = "column"
"""The variable of an operand's columns; it has as many values as there are columns."""


@dataclass(frozen=True)
class Operand:
    """A matrix in a buffer: what it is at a step of column c.

    index: coordinates in the variables of `step_variables(steps)` and COLUMN
    steps: extents of the variables that are summed over
    """

    buffer: Buffer
    index: tuple[Index, ...]
    steps: tuple[int, ...]
    columns: int


@dataclass(frozen=True)
class Panels:
    """Operands of one group of dots that are packed together, `lanes` columns of each a panel."""

    operands: tuple[Operand, ...]
    lanes: int


def step_variables(extents: Sequence[int]) -> list[Var]:
    """Variables of the steps of a packed operand."""
    if len(extents) == 1:
        return [Var("step", extents[0])]
    return [Var(f"step{i}", extent) for i, extent in enumerate(extents)]
