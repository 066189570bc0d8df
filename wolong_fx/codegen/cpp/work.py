"""How much there is to do in an operator, as its tile function does it: instructions and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from wolong_fx.codegen.cpp.tiles import (
    INSTRUCTION_CYCLES,
    LIBM,
    LIBM_CYCLES,
    SPECIAL,
    Planner,
    TilePlan,
)
from wolong_fx.ir.expr import Binary, Cast, Expr, Load, Reduce, Unary, Where, walk

IN_FLIGHT = 8
"""Independent sums that keep the multiply-adders busy: fewer wait for each other."""

BLOCK_INSTRUCTIONS = 40.0
"""Around the loops of a virtual block: addresses, first and last steps, a way through the epilogue."""

ACROSS_INSTRUCTIONS = 5.0
"""To add up the lanes of a vector, for each result of a dot that vectors run along."""


@dataclass(frozen=True)
class Work:
    """Of a whole operator.

    cycles: of instructions other than these
    multiply_adds: of dots, in float32, counting what idle lanes, ragged rows and waiting sums cost
    specials: vectors of an exp, tanh or the like
    """

    cycles: float
    multiply_adds: float
    specials: float


def op_work(planner: Planner) -> Work:
    """The work of an operator with a tile."""
    return _Counter(planner).count()


class _Counter:
    """Counts the nodes of an operator, each as often as it is computed."""

    def __init__(self, planner: Planner) -> None:
        self.planner, self.op, self.analysis = planner, planner.op, planner.analysis
        self.dots = self.analysis.dots

    def count(self) -> Work:
        others = [n for n in self.analysis.nodes if id(n) not in self.in_dots]
        specials = sum(self._vectors(n) for n in others if _is_function(n, SPECIAL))
        return Work(
            self._block_cycles() + sum(map(self._cycles, others)) + sum(map(self._across, self.dots)),
            sum(map(self._multiply_adds, self.dots)),
            specials,
        )

    @cached_property
    def in_dots(self) -> set[int]:
        """Nodes that a multiply-add takes care of: the dots, their products, and loads of their factors."""
        below = (n for dot in self.dots for n in walk([dot.body]))
        found = {id(n) for n in below if isinstance(n, Load | Cast) or n in [d.body for d in self.dots]}
        return found | {id(dot) for dot in self.dots}

    @cached_property
    def plan(self) -> TilePlan:
        return self.planner.plan.fitted(self.op)

    def _times(self, node: Expr) -> float:
        """How often a node is computed, for one lane each."""
        analysis = self.analysis
        trips = prod(v.extent for v in analysis.free[id(node)] if v in analysis.bound)
        trips *= prod(v.extent for v in node.over) if isinstance(node, Reduce) else 1
        return self.op.points * trips / self.planner.points_sharing(node)

    def _vectors(self, node: Expr) -> float:
        is_vector = self.analysis.lane is not None or node.dtype.is_float
        return self._times(node) / (self.planner.lanes if is_vector else 1)

    def _cycles(self, node: Expr) -> float:
        if isinstance(node, Load):
            irregular = self.analysis.lane_stride(node.access, self.planner.plan.span) not in (0, 1)
            return self._times(node) if irregular else INSTRUCTION_CYCLES * self._vectors(node)
        if _is_function(node, LIBM):
            return LIBM_CYCLES * self._times(node)
        if isinstance(node, Reduce):
            return self._vectors(node)
        is_cheap = isinstance(node, Unary | Binary | Cast | Where) and not _is_function(node, SPECIAL)
        return INSTRUCTION_CYCLES * self._vectors(node) if is_cheap else 0.0

    def _block_cycles(self) -> float:
        stored = INSTRUCTION_CYCLES * len(self.op.stores) * self.op.points / self.planner.lanes
        return stored + BLOCK_INSTRUCTIONS * self.op.virtual_blocks

    def _across(self, dot: Reduce) -> float:
        return ACROSS_INSTRUCTIONS * self.op.points if self.planner.runs_along_inner(dot) else 0.0

    def _multiply_adds(self, dot: Reduce) -> float:
        """In float32: a vector of float64 has half as many."""
        plan, lane = self.plan, self.analysis.lane
        wide = self.planner.machine.lanes(4) / self.planner.lanes
        if self.planner.runs_along_inner(dot):
            sums, fill = plan.rows * plan.columns, 1.0
        else:
            group = max(len(g) for g in self.planner.groups())
            sums = plan.rows * plan.vectors * plan.split * group
            extent = lane.extent if lane else 1
            fill = extent / (ceil(extent / plan.lanes) * plan.lanes)
        return wide * self._times(dot) / fill / self._row_fill() / min(1.0, sums / IN_FLIGHT)

    def _row_fill(self) -> float:
        """Rows that there are for each row of a micro-kernel's steps."""
        if self.plan.row is None:
            return 1.0
        extent = self.op.dims[self.plan.row].extent
        return extent / (ceil(extent / self.plan.rows) * self.plan.rows)


def _is_function(node: Expr, names: frozenset[str]) -> bool:
    return isinstance(node, Unary | Binary) and node.op in names
