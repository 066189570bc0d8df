"""Weights that many operators stream are copied, once a call, to the order in which micro-kernels read them.

A recurrence reads its weights at every step. In place, the columns that one thread needs lie strided: they
fill only part of the cache's sets, and 80 steps of an LSTM of 256 units took 1.5 times as long (460 us
against 300) as from panels of one vector's columns, the dots of a group side by side. The copies are
operators like any other: they are run again at every call, since weights change under a compiled model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wolong_fx.codegen.cpp.analysis import find_factors
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.ir.expr import Access, Cast, Expr, Load, Reduce, map_access, rebuild
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind

LEAST_USERS = 8
"""Operators that have to stream an operand for its copy to pay: it costs about as much as three of them."""


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


def pack_operands(ops: Sequence[OpInst], isa: str) -> list[OpInst]:
    """The operators with often streamed operands packed: first the copies, then all others, in order.

    ops: before scheduling; an operand is packed if LEAST_USERS of them read it in the same way
    """
    found = [_find_panels(op, isa) for op in ops]
    users = Counter(panels for panels_of_op in found for panels, _ in panels_of_op)
    worth_it = [panels for panels, count in users.items() if count >= LEAST_USERS]
    packed = {panels: _packed_buffer(panels, n) for n, panels in enumerate(worth_it)}
    copies = [copy for panels, buffer in packed.items() for copy in _copies(panels, buffer)]
    return copies + [_rewritten(op, uses, packed) for op, uses in zip(ops, found, strict=True)]


def _find_panels(op: OpInst, isa: str) -> Found:
    """Groups of dots of an operator whose streamed operands could all be packed."""
    if not any(isinstance(node, Reduce) for node in op.expressions()):
        return []
    planner, found = Planner(op, MACHINES[isa]), []
    for group in planner.groups() if planner.analysis.dots else []:
        loads = [_streamed_load(planner, r) for r in group]
        operands = [_operand(planner, load, r) for load, r in zip(loads, group, strict=True)]
        if all(o is not None for o in operands):
            panels = Panels(tuple(o for o in operands if o), planner.lanes)
            pairs = [(load, r.over[0]) for load, r in zip(loads, group, strict=True) if load]
            found.append((panels, pairs))
    return found


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
