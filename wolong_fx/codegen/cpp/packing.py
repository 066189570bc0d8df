"""Matrices that dots stream are copied to the order in which micro-kernels read them.

A recurrence reads its weights at every step. In place, the columns that one thread needs lie strided: they
fill only part of the cache's sets, and 80 steps of an LSTM of 256 units took 1.5 times as long (460 us
against 300) as from panels of a few vectors' columns, the dots of a group side by side. The copies are
operators like any other. Those of weights move to the prepare part, which runs when a weight changed; others
run at every call, and must pay for themselves in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from wolong_fx.codegen.cpp.analysis import find_factors
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.codegen.loops import Element, map_ops, walk_ops
from wolong_fx.ir.expr import Access, Cast, Expr, Load, Reduce, map_access, rebuild
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind

LEAST_USES = 8
"""Times that an operand has to be streamed for a copy at every call to pay: it costs as much as three."""


@dataclass(frozen=True)
class Operand:
    """A matrix in a buffer: what it is at step k of column c.

    index: coordinates in the variables `STEP` and `COLUMN`
    """

    buffer: Buffer
    index: tuple[Index, ...]
    steps: int
    columns: int


@dataclass(frozen=True)
class Panels:
    """Operands of one group of dots that are packed together, `lanes` columns of each a panel."""

    operands: tuple[Operand, ...]
    lanes: int


@dataclass(frozen=True)
class Use:
    """Panels that an operator could read.

    loads: what it reads now, and the variable of its steps, for each operand
    is_good_in_place: a row times a matrix whose columns lie in one piece each: once, no panels are faster
    """

    panels: Panels
    loads: tuple[tuple[Load, Var], ...]
    is_good_in_place: bool


def pack_operands(
    elements: Sequence[Element], isa: str, static: Collection[Buffer] = frozenset(), room: int = 0
) -> list[Element]:
    """The operators with streamed operands packed: first the copies, then all others, in order.

    elements: before scheduling; an operand is packed if LEAST_USES of them, or trips of a loop around them,
        read it in the same way
    static: buffers that stay the same between calls, so that copies are kept: of what is read more than once,
        or badly in place
    room: bytes that may be kept; what is read most often comes first
    """
    uses = {id(op): _find_uses(op, isa) for op, _ in walk_ops(elements)}
    packed = _choose(uses, elements, static, room)
    copies = [copy for panels, buffer in packed.items() for copy in _copies(panels, buffer)]
    return [*copies, *map_ops(elements, lambda op: _rewritten(op, uses[id(op)], packed))]


def _choose(
    uses: Mapping[int, Sequence[Use]], elements: Sequence[Element], static: Collection[Buffer], room: int
) -> dict[Panels, Buffer]:
    """The panels that pay, and their memory."""
    counts: Counter[Panels] = Counter()
    awkward: set[Panels] = set()
    for op, trips in walk_ops(elements):
        counts.update({use.panels: trips for use in uses[id(op)]})
        awkward.update(use.panels for use in uses[id(op)] if not use.is_good_in_place)
    packed: dict[Panels, Buffer] = {}
    for panels, count in counts.most_common():
        buffer = _packed_buffer(panels, len(packed))
        can_be_kept = buffer.span_bytes <= room and all(o.buffer in static for o in panels.operands)
        is_kept = can_be_kept and (count > 1 or panels in awkward)
        if is_kept or count >= LEAST_USES:
            packed[panels] = buffer
            room -= buffer.span_bytes if is_kept else 0
    return packed


def _find_uses(op: OpInst, isa: str) -> list[Use]:
    """Groups of dots of an operator whose streamed operands could all be packed."""
    if not any(isinstance(node, Reduce) for node in op.expressions()):
        return []
    planner, found = Planner(op, MACHINES[isa]), []
    for group in planner.groups() if planner.analysis.dots else []:
        loads = [_streamed_load(planner, r) for r in group]
        operands = [_operand(planner, load, r) for load, r in zip(loads, group, strict=True)]
        if all(o is not None for o in operands):
            found.append(_in_one_order(planner, group, operands, loads))
    return found


def _in_one_order(
    planner: Planner,
    group: Sequence[Reduce],
    operands: Sequence[Operand | None],
    loads: Sequence[Load | None],
) -> Use:
    """What a group with all its operands could read; the same for groups that differ in order alone."""
    rows = [(o, load, r.over[0]) for o, load, r in zip(operands, loads, group, strict=True) if o and load]
    rows.sort(key=lambda row: (row[0].buffer.name, str(row[0].index)))
    widest = max(map(len, planner.groups()))  # the micro-kernel has one width, which its panels must have too
    columns = planner.lanes * planner.vectors_side_by_side(widest)
    is_good = planner.plan.rows == 1 and all(map(planner.runs_along_inner, group))
    panels = Panels(tuple(operand for operand, _, _ in rows), columns)
    return Use(panels, tuple((load, step) for _, load, step in rows), is_good)


def _streamed_load(planner: Planner, reduce: Reduce) -> Load | None:
    factors = find_factors(planner.analysis, reduce)
    if factors is None or len(reduce.over) != 1:
        return None
    node: Expr = factors.streamed.x if isinstance(factors.streamed, Cast) else factors.streamed
    return node if isinstance(node, Load) else None


def _operand(planner: Planner, load: Load | None, reduce: Reduce) -> Operand | None:
    """The matrix that a load reads, if it depends on the step and the column alone and nobody writes it."""
    lane = planner.analysis.lane
    if load is None or lane is None or load.fill is not None or load.access.gathers:
        return None
    buffer, steps, columns = load.access.buffer, reduce.over[0], lane.var
    if buffer.kind not in (BufferKind.INPUT, BufferKind.CONSTANT):
        return None
    if not {v for i in load.access.affine for v in i.variables()} <= {steps, columns}:
        return None
    step, column = Var("step", steps.extent), Var("column", columns.extent)
    index = tuple(i.substitute({steps: step, columns: column}) for i in load.access.affine)
    return Operand(buffer, index, steps.extent, columns.extent)


def _packed_buffer(panels: Panels, number: int) -> Buffer:
    """Memory for (panel, step, operand of the group, column of the panel)."""
    first = panels.operands[0]
    shape = (-(-first.columns // panels.lanes), first.steps, len(panels.operands), panels.lanes)
    name = f"packed{number}_{first.buffer.name}"
    return Buffer.contiguous(name, first.buffer.dtype, shape, BufferKind.TEMPORARY)


def _copies(panels: Panels, packed: Buffer) -> list[OpInst]:
    """The operators that fill a packed buffer; columns past the end are zeros."""
    copies = []
    for g, operand in enumerate(panels.operands):
        p, k, c = Var("panel", packed.shape[0]), Var("step", operand.steps), Var("lane", panels.lanes)
        column = Index.of(p) * panels.lanes + c
        index = tuple(i.substitute({Var("column", operand.columns): column}) for i in operand.index)
        is_ragged = operand.columns % panels.lanes != 0
        value = Load(Access(operand.buffer, index), 0 if is_ragged else None)
        place = Access(packed, (Index.of(p), Index.of(k), Index.of(g), Index.of(c)))
        name = operand.buffer.name
        dims = (Dim(p), Dim(k), Dim(c))
        copies.append(OpInst(f"pack_{name}", dims, (Store(place, value),), made_from=(name,)))
    return copies


def _rewritten(op: OpInst, uses: Sequence[Use], packed: Mapping[Panels, Buffer]) -> OpInst:
    """The operator with the loads of packed operands replaced."""
    loads: dict[int, Load] = {}
    for use in uses:
        if use.panels in packed:
            for g, (load, step) in enumerate(use.loads):
                loads[id(load)] = _packed_load(op, packed[use.panels], use.panels.lanes, g, step)
    if not loads:
        return op
    old = [*(s.value for s in op.stores), *(g.value for s in op.stores for g in s.access.gathers)]
    new = dict(zip(map(id, old), rebuild(old, lambda node: loads.get(id(node)), lambda i: i), strict=True))
    stores = (
        Store(map_access(s.access, lambda e: new[id(e)], lambda i: i), new[id(s.value)], s.accumulate)
        for s in op.stores
    )
    return replace(op, stores=tuple(stores))


def _packed_load(op: OpInst, buffer: Buffer, lanes: int, g: int, step: Var) -> Load:
    column = Index.of(op.dims[-1].var)
    return Load(Access(buffer, (column // lanes, Index.of(step), Index.of(g), column % lanes)))
