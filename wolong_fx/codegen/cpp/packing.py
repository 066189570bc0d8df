"""Matrices that dots stream are copied to the order in which micro-kernels read them.

A recurrence reads its weights at every step. In place, the columns that one thread needs lie strided: they
fill only part of the cache's sets, and 80 steps of an LSTM of 256 units took 1.5 times as long (460 us
against 300) as from panels of one vector's columns, the dots of a group side by side. The copies are
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
    """Operands of one group of dots that are packed together, `lanes` columns a panel."""

    operands: tuple[Operand, ...]
    lanes: int


Found = list[tuple[Panels, list[tuple[Load, Var]]]]
"""The panels that an operator could use, and for each operand the load and the variable of its steps."""


def pack_operands(
    elements: Sequence[Element], isa: str, static: Collection[Buffer] = frozenset(), room: int = 0
) -> list[Element]:
    """The operators with streamed operands packed: first the copies, then all others, in order.

    elements: before scheduling; an operand is packed if LEAST_USES of them, or trips of a loop around them,
        read it in the same way
    static: buffers that stay the same between calls; one reader is enough, their copies are kept
    room: bytes that may be kept; what is read most often comes first
    """
    found = {id(op): _find_panels(op, isa) for op, _ in walk_ops(elements)}
    users: Counter[Panels] = Counter()
    for op, trips in walk_ops(elements):
        users.update({panels: trips for panels, _ in found[id(op)]})
    packed: dict[Panels, Buffer] = {}
    for number, (panels, count) in enumerate(users.most_common()):
        buffer = _packed_buffer(panels, number)
        is_kept = buffer.span_bytes <= room and all(o.buffer in static for o in panels.operands)
        if is_kept or count >= LEAST_USES:
            packed[panels] = buffer
            room -= buffer.span_bytes if is_kept else 0
    copies = [copy for panels, buffer in packed.items() for copy in _copies(panels, buffer)]
    return [*copies, *map_ops(elements, lambda op: _rewritten(op, found[id(op)], packed))]


def _find_panels(op: OpInst, isa: str) -> Found:
    """Groups of dots of an operator whose streamed operands could all be packed."""
    if not any(isinstance(node, Reduce) for node in op.expressions()):
        return []
    planner, found = Planner(op, MACHINES[isa]), []
    for group in planner.groups() if planner.analysis.dots else []:
        loads = [_streamed_load(planner, r) for r in group]
        operands = [_operand(planner, load, r) for load, r in zip(loads, group, strict=True)]
        if all(o is not None for o in operands):
            found.append(_in_one_order(operands, loads, group, planner.lanes))
    return found


def _in_one_order(
    operands: Sequence[Operand | None], loads: Sequence[Load | None], group: Sequence[Reduce], lanes: int
) -> tuple[Panels, list[tuple[Load, Var]]]:
    """The panels of a group whose operands are all there; the same for groups that differ in order alone."""
    rows = [(o, load, r.over[0]) for o, load, r in zip(operands, loads, group, strict=True) if o and load]
    rows.sort(key=lambda row: (row[0].buffer.name, str(row[0].index)))
    return Panels(tuple(o for o, _, _ in rows), lanes), [(load, step) for _, load, step in rows]


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


def _rewritten(op: OpInst, uses: Found, packed: Mapping[Panels, Buffer]) -> OpInst:
    """The operator with the loads of packed operands replaced."""
    loads: dict[int, Load] = {}
    for panels, pairs in uses:
        if panels in packed:
            for g, (load, step) in enumerate(pairs):
                loads[id(load)] = _packed_load(op, packed[panels], panels.lanes, g, step)
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
