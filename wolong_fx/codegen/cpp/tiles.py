"""How an operator is cut: lanes, registers of a micro-kernel, virtual blocks, and what a block costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod

from wolong_fx.codegen.analysis import Analysis, find_factors, loads_at_steps, loads_below
from wolong_fx.codegen.cpp.machine import MACHINES, Machine
from wolong_fx.codegen.signature import accesses
from wolong_fx.ir.expr import Binary, Expr, Load, Reduce, Unary
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer
from wolong_fx.runtime.machine_costs import SPECIAL_CYCLES

GROUP = 4
"""Reductions that share one loop at most: more would not leave registers to any of them."""

TRANSPOSED_ROWS = 64
"""Points along a transposed dimension: four cache lines of float32."""

BLOCK_CYCLES = 6000.0
"""Work of a virtual block, where there is enough: well above the cost of finding the next one (about 20)."""

LINE_CYCLES = 4.0
"""Of a cache line that comes from far for the sake of part of it."""

INSTRUCTION_CYCLES = 0.5
"""Of an instruction that waits for nothing: two of them start in a cycle."""

LIBM_CYCLES = 20.0
"""Of a function that is called for each element."""

SPECIAL = frozenset("exp exp2 expm1 log log2 log10 log1p sigmoid tanh erf".split())
LIBM = frozenset("erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh lgamma".split())


@dataclass(frozen=True)
class TilePlan:
    """How the tile function of an operator runs through a virtual block.

    lanes: elements of a vector
    row: the dimension whose points a micro-kernel takes `rows` of at once
    rows, vectors: shape of the micro-kernel
    split: partial sums that each of its accumulators is split into, so that enough are independent
    columns: of a dot along the inner variable, how many lanes accumulate at once
    blocked: whether the micro-kernel is a function of its own (inlined, its accumulators would be spilled)
    """

    lanes: int
    row: int | None = None
    rows: int = 1
    vectors: int = 1
    split: int = 1
    columns: int = 1
    blocked: bool = False

    @property
    def span(self) -> int:
        """Lanes that one step along the lane dimension takes."""
        return self.lanes * self.vectors

    def fitted(self, op: OpInst) -> TilePlan:
        """The plan for the tile that the schedule chose, which may be smaller than the micro-kernel."""
        if not op.dims:
            return self
        vectors = min(self.vectors, max(1, ceil(op.tile[-1] / self.lanes)))
        rows = self.rows if self.row is None else min(self.rows, max(1, op.tile[self.row]))
        return replace(self, vectors=vectors, rows=rows)


class Planner:
    """Derives the plan of one operator."""

    def __init__(self, op: OpInst, machine: Machine) -> None:
        self.op = op
        self.machine = machine
        self.analysis = Analysis(op)
        self.lanes = machine.lanes(self.analysis.widest)

    @cached_property
    def plan(self) -> TilePlan:
        analysis, lane = self.analysis, self.analysis.lane
        if lane is None:
            return TilePlan(self.lanes)
        along_lanes = [r for r in analysis.reductions if analysis.depends(r, lane.var)]
        if not along_lanes:
            return TilePlan(self.lanes)
        if not analysis.dots:
            vectors = (
                1 if any(self.runs_along_inner(r) for r in along_lanes) else self._vectors(1, lane.extent)
            )
            return TilePlan(self.lanes, self._served_under_lane, vectors=vectors, columns=self.lanes)
        return self._dot_plan(lane.extent)

    @cached_property
    def served(self) -> frozenset[int]:
        """Dimensions along which a reduction that is no dot serves all points: blocks own these whole."""
        others = [r for r in self.analysis.reductions if r not in self.analysis.dots]
        dims = [(i, d) for i, d in enumerate(self.op.dims) if not d.sequential]
        return frozenset(i for i, d in dims if any(not self.analysis.depends(r, d.var) for r in others))

    def points_sharing(self, node: Expr) -> int:
        """Points that one value of a node serves, as loops are nested: along the lanes, and in a row."""
        lane = len(self.op.dims) - 1 if self.analysis.lane is not None else None
        dims = enumerate(self.op.dims)
        alike = (
            d for i, d in dims if (i == lane or i in self.served) and not self.analysis.depends(node, d.var)
        )
        return max(1, prod(d.extent for d in alike))

    @cached_property
    def _served_under_lane(self) -> int | None:
        """The dimension that is walked under each step along the lanes, whose reductions serve it."""
        return max((i for i in self.served if i != len(self.op.dims) - 1), default=None)

    def _dot_plan(self, extent: int) -> TilePlan:
        group = max(len(g) for g in self.groups())
        row = self._row()
        points = 1 if row is None else self.op.dims[row].extent
        if any(self.runs_along_inner(r) for r in self.analysis.dots):
            return self._inner_dot_plan(row, points)
        vectors = self._vectors(group, extent)
        accumulators = vectors * group
        rows = _even(
            points, min(6 if vectors * group >= 4 else 12, max(1, self.machine.accumulators // accumulators))
        )
        split = 1
        while split * 2 * rows * accumulators <= 16 and split < 4:
            split *= 2
        return TilePlan(self.lanes, row, rows, vectors, split, self.lanes, True)

    def _inner_dot_plan(self, row: int | None, points: int) -> TilePlan:
        """The weights' rows lie along the inner variable: vectors run along it."""
        if points == 1:
            return TilePlan(self.lanes, row, 1, 1, 1, min(8, self.lanes), True)
        rows = _even(points, 4 if self.machine.registers == 32 else 2)
        return TilePlan(self.lanes, row, rows, 1, 1, min(4, self.lanes), True)

    def vectors_side_by_side(self, group: int) -> int:
        """Of each of `group` dots, how many vectors of columns one step along k should find together."""
        return self._vectors(group, self.analysis.lane.extent) if self.analysis.lane else 1

    def _vectors(self, group: int, extent: int) -> int:
        """Vectors of the right operand at once: a divisor of the row, so that few steps are ragged."""
        have = ceil(extent / self.lanes)
        wanted = max(1, self.machine.width // group)
        return next(n for n in range(min(wanted, have), 0, -1) if have % n == 0 or n * 2 <= wanted)

    def _row(self) -> int | None:
        """The parallel dimension that most work shares its streamed factor along."""
        candidates = [
            (dim.extent, i)
            for i, dim in enumerate(self.op.dims[:-1])
            if not dim.sequential
            and dim.extent > 1
            and any(self._reuses(r, dim.var) for r in self.analysis.dots)
        ]
        return max(candidates)[1] if candidates else None

    def _reuses(self, reduce: Reduce, var: Var) -> bool:
        factors = find_factors(self.analysis, reduce)
        if factors is None or self.analysis.sequential:
            return False
        return self.analysis.depends(factors.shared, var) and not self.analysis.depends(factors.streamed, var)

    def runs_along_inner(self, reduce: Reduce) -> bool:
        """Whether vectors should run along the innermost variable: what the lane strides over is
        contiguous there.
        """
        analysis = self.analysis
        if not reduce.over:
            return False
        if analysis.lane is None or not analysis.depends(reduce, analysis.lane.var):
            return reduce.over[-1].extent >= 2
        loads = [n for n in loads_at_steps(reduce) if analysis.depends(n, analysis.lane.var)]
        strides = [self._strides(load, reduce) for load in loads]
        strided = [inner for lane, inner in strides if lane not in (0, 1)]
        contiguous = [inner for lane, inner in strides if lane == 1 and inner not in (0, 1)]
        return (
            bool(strided) and all(s == 1 for s in strided) and not contiguous and reduce.over[-1].extent >= 4
        )

    def _strides(self, load: Load, reduce: Reduce) -> tuple[int | None, int | None]:
        access = load.access
        return self.analysis.lane_stride(access, self.lanes), self.analysis.inner_stride(access, reduce)

    def groups(self) -> list[list[Reduce]]:
        """Reductions that run in one loop: of one shape, none needing another's result."""
        alike: dict[object, list[Reduce]] = {}
        for r in self.analysis.reductions:
            alike.setdefault(self._shape(r), []).append(r)
        return [group for some in alike.values() for group in _in_even_groups(some)]

    def _shape(self, reduce: Reduce) -> object:
        dims = frozenset(i for i, d in enumerate(self.op.dims) if self.analysis.depends(reduce, d.var))
        extents = tuple(v.extent for v in reduce.over)
        is_position = reduce.op in ("argmax", "argmin")
        shared = self._shared_buffers(reduce)
        return (
            self.analysis.level[id(reduce)],
            dims,
            extents,
            is_position,
            self.runs_along_inner(reduce),
            shared,
        )

    def _shared_buffers(self, reduce: Reduce) -> frozenset[Buffer]:
        """Where a dot's shared factor comes from: those of a group use each of its elements for all of them.

        So the weights that meet one operand lie in the same panels wherever they meet it, whatever else an
        operator computes.
        """
        factors = find_factors(self.analysis, reduce)
        return frozenset(n.access.buffer for n in loads_below(factors.shared)) if factors else frozenset()


def block_order(planner: Planner) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest, as a tile function numbers blocks and walks their points:
    under a micro-kernel, rows share a panel.
    """
    dims, row = tuple(range(len(planner.op.dims))), planner.plan.row
    if not planner.plan.blocked or row is None:
        return dims
    return (*(d for d in dims if d != row), row)


def choose_tile(op: OpInst, isa: str, threads: int) -> tuple[int, ...]:
    """Points of each dimension that one virtual block takes: about BLOCK_CYCLES of work, and blocks for
    all threads.

    The whole extent of a sequential dimension, and of one that a reduction serves; 1 for one without points.
    """
    planner = Planner(op, MACHINES[isa])
    whole = [d.sequential or i in planner.served for i, d in enumerate(op.dims)]
    tile = [max(1, d.extent) if is_whole else 1 for d, is_whole in zip(op.dims, whole, strict=True)]
    least = _least_tile(planner)
    target = min(BLOCK_CYCLES, max(300.0, op_cycles(planner) / (4 * threads)))
    strided = _strided_dimension(planner)
    if strided is not None:
        tile[-1], tile[strided] = least[-1], min(TRANSPOSED_ROWS, op.dims[strided].extent)
    for i in _growth_order(planner):
        if whole[i] or (strided is not None and i in (len(op.dims) - 1, strided)):
            continue
        room = target / max(1e-9, _cycles(planner, tile, least))
        tile[i] = max(1, min(op.dims[i].extent, least[i] * max(1, int(room))))
    return tuple(tile)


def _strided_dimension(planner: Planner) -> int | None:
    """The dimension along which a load or store is contiguous that the lanes stride over: blocks take some
    of its points under one vector of lanes, so that a cache line is used up while it is near.
    """
    analysis, dims = planner.analysis, planner.op.dims
    if analysis.lane is None or analysis.reductions or analysis.sequential:
        return None
    for access in accesses(planner.op):
        if analysis.lane_stride(access, planner.lanes) not in (0, 1):
            for i, dim in enumerate(dims[:-1]):
                if access.offset().coefficient(dim.var) == 1:
                    return i
    return None


def _least_tile(planner: Planner) -> list[int]:
    """One step of the micro-kernel in each dimension."""
    plan, least = planner.plan, [1] * len(planner.op.dims)
    if planner.analysis.lane is not None:
        least[-1] = plan.span
    if plan.row is not None:
        least[plan.row] = plan.rows
    return least


def _growth_order(planner: Planner) -> Sequence[int]:
    """Parallel dimensions, the one to grow first first: rows under one panel, otherwise the lane."""
    order = [i for i in reversed(range(len(planner.op.dims))) if not planner.op.dims[i].sequential]
    row = planner.plan.row
    if planner.plan.blocked and order:
        lane = order[0] if planner.analysis.lane is not None else None
        rest = [i for i in order if i not in (row, lane)]
        return [i for i in (lane, row) if i is not None] + rest
    return order


def _cycles(planner: Planner, tile: Sequence[int], least: Sequence[int]) -> float:
    points = prod(max(t, min(n, d.extent)) for t, n, d in zip(tile, least, planner.op.dims, strict=True))
    return points * point_cycles(planner)


def op_cycles(planner: Planner) -> float:
    """Estimated cycles of a whole operator on one thread."""
    return planner.op.points * point_cycles(planner)


def point_cycles(planner: Planner) -> float:
    """Estimated cycles of one point of the domain; reductions count at the points that share them."""
    cached = getattr(planner, "_point_cycles", None)
    if cached is None:
        cached = sum(_node_cycles(planner, n) for n in planner.analysis.nodes)
        planner._point_cycles = cached = max(cached, _least_cycles(planner))  # type: ignore[attr-defined]
    return cached


def _least_cycles(planner: Planner) -> float:
    """What moving one point costs at least: rows shorter than a vector have a cache line each."""
    lane = planner.analysis.lane
    if lane is None or planner.analysis.reductions or lane.extent >= planner.lanes:
        return 0.05
    return LINE_CYCLES / lane.extent


def _node_cycles(planner: Planner, node: Expr) -> float:
    analysis, lane = planner.analysis, planner.analysis.lane
    vector = 1.0 / planner.lanes if lane is not None or node.dtype.is_float else 1.0
    trips = prod(v.extent for v in analysis.free[id(node)] if v in analysis.bound)
    return trips * _weight(planner, node) * vector / planner.points_sharing(node)


def _weight(planner: Planner, node: Expr) -> float:
    if isinstance(node, Load):
        irregular = planner.analysis.lane_stride(node.access, planner.plan.span) not in (0, 1)
        return planner.lanes if irregular else INSTRUCTION_CYCLES
    if isinstance(node, Reduce):
        return 1.0
    if isinstance(node, Unary | Binary):
        if node.op in SPECIAL:
            return SPECIAL_CYCLES
        return LIBM_CYCLES * planner.lanes if node.op in LIBM else INSTRUCTION_CYCLES
    return INSTRUCTION_CYCLES


def _in_even_groups(reductions: Sequence[Reduce]) -> list[list[Reduce]]:
    """At most GROUP each: of six, three and three, which need one width of panel, not four and two."""
    size = _even(len(reductions), GROUP)
    return [list(reductions[i : i + size]) for i in range(0, len(reductions), size)]


def _even(points: int, most: int) -> int:
    """Rows of a micro-kernel: at most `most`, such that the last one is not much smaller."""
    return ceil(points / ceil(points / most)) if points else 1
