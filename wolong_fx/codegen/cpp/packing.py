"""Matrices that dots stream are copied to the order in which micro-kernels read them.

A recurrence reads its weights at every step. In place, the columns that one thread needs lie strided: they
fill only part of the cache's sets, and 80 steps of an LSTM of 256 units took 1.5 times as long (460 us
against 300) as from panels of a few vectors' columns, the dots of a group side by side. The gradient of its
weights sums over 1280 rows that lie 1 KiB apart, and fall into a sixteenth of the cache's sets: 3.5 ms in
place, 1.6 from panels. What a micro-kernel reads of its rows lies as badly where their steps lie apart, and
is packed for it too. The copies are operators like any other. Those of weights move to the prepare part,
which runs when a weight changed; others run at every call, and must pay for themselves in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal

from wolong_fx.codegen.analysis import find_factors
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.panels import COLUMN, Operand, Panels, step_variables
from wolong_fx.codegen.cpp.place_panels import find_places, place_in_panels
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.codegen.loops import Element, all_carry_buffers, map_ops, walk_ops
from wolong_fx.ir.expr import Access, Cast, Expr, Load, Reduce, map_access, rebuild
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind

LEAST_USES = 8
"""Times that an operand has to be streamed for a copy at every call to pay: it costs as much as three."""

GIVEN = (BufferKind.INPUT, BufferKind.CONSTANT)
"""Kinds of buffers that never change: all others may be copied once nothing writes them any more."""


@dataclass(frozen=True)
class Use:
    """Panels that an operator could read.

    loads: what it reads now, and the variables of its steps, for each operand
    along: the variable of the operator that counts columns
    times: how often each run of the operator goes through the panels: once for all rows of a micro-kernel
    is_good_in_place: a row times a matrix whose columns lie in one piece each: once, no panels are faster
    """

    panels: Panels
    loads: tuple[tuple[Load, tuple[Var, ...]], ...]
    along: Var
    times: int
    is_good_in_place: bool


def pack_operands(
    elements: Sequence[Element], isa: str, static: Collection[Buffer] = frozenset(), room: int = 0
) -> list[Element]:
    """The operators with streamed operands packed: copies of what the caller passes come first, of what is
    computed behind that.

    elements: before scheduling; an operand is packed if they stream it LEAST_USES times in the same way:
        several of them, trips of a loop around them, or rows of one
    static: buffers that stay the same between calls, so that copies are kept: of what is read more than once,
        or badly in place
    room: bytes that may be kept; what is read most often comes first
    """
    filled = _fill_times(elements)
    uses = {
        id(op): [use for use in _find_uses(op, isa) if _is_filled(use.panels, filled, position)]
        for position, element in enumerate(elements)
        for op, _ in walk_ops([element])
    }
    packed = _choose(uses, elements, static, room)
    rewritten = map_ops(elements, lambda op: _rewritten(op, uses[id(op)], packed))
    places = find_places(packed, rewritten)
    rewritten = place_in_panels(rewritten, places)
    copies: dict[int, list[OpInst]] = defaultdict(list)
    for panels, buffer in packed.items():
        if panels.operands[0].buffer not in places:
            copies[max(filled.get(o.buffer, -1) for o in panels.operands)] += _copies(panels, buffer)
    return [*copies[-1], *(e for at, element in enumerate(rewritten) for e in (element, *copies[at]))]


def _fill_times(elements: Sequence[Element]) -> dict[Buffer, int]:
    """The position of the last writer of what elements write; what a loop carries changes to the end."""
    last = {buffer: position for position, element in enumerate(elements) for buffer in element.writes()}
    return last | dict.fromkeys(all_carry_buffers(elements), len(elements))


def _is_filled(panels: Panels, filled: Mapping[Buffer, int], position: int) -> bool:
    """Whether at this position all operands are what they will be for good."""
    return all(o.buffer.kind in GIVEN or filled.get(o.buffer, position) < position for o in panels.operands)


def _choose(
    uses: Mapping[int, Sequence[Use]], elements: Sequence[Element], static: Collection[Buffer], room: int
) -> dict[Panels, Buffer]:
    """The panels that pay, and their memory."""
    counts: Counter[Panels] = Counter()
    awkward: set[Panels] = set()
    for op, trips in walk_ops(elements):
        for use in uses[id(op)]:
            counts[use.panels] += trips * use.times
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
        loads = [_load_of(planner, r, "streamed") for r in group]
        columns = planner.op.dims[-1].var
        operands = [_operand(load, r, columns) for load, r in zip(loads, group, strict=True)]
        if planner.analysis.lane is not None and all(o is not None for o in operands):
            found.append(_in_one_order(planner, group, operands, loads))
        if (rows := _find_row_use(planner, group)) is not None:
            found.append(rows)
    return found


def _find_row_use(planner: Planner, group: Sequence[Reduce]) -> Use | None:
    """Panels of the rows of a micro-kernel, for the factor that all dots of a group share, if its steps lie
    apart: each would touch a cache line for the sake of a few rows.
    """
    plan, dims = planner.plan, planner.op.dims
    if plan.row is None or plan.rows == 1:
        return None
    row = dims[plan.row].var
    loads = [_load_of(planner, r, "shared") for r in group]
    operands = {_operand(load, r, row) for load, r in zip(loads, group, strict=True)}
    strides = [
        planner.analysis.inner_stride(load.access, r) for load, r in zip(loads, group, strict=True) if load
    ]
    if len(operands) != 1 or None in operands or 1 in strides:
        return None
    panels = Panels(tuple(o for o in operands if o), plan.rows)
    times = ceil(planner.op.points / row.extent / plan.span)
    steps = [(load, r.over) for load, r in zip(loads, group, strict=True) if load]
    return Use(panels, tuple(steps), row, times, True)


def _in_one_order(
    planner: Planner,
    group: Sequence[Reduce],
    operands: Sequence[Operand | None],
    loads: Sequence[Load | None],
) -> Use:
    """What a group with all its operands could read; the same for groups that differ in order alone."""
    rows = [(o, load, r.over) for o, load, r in zip(operands, loads, group, strict=True) if o and load]
    rows.sort(key=lambda row: (row[0].buffer.name, str(row[0].index)))
    widest = max(map(len, planner.groups()))  # the micro-kernel has one width, which its panels must have too
    columns = planner.lanes * planner.vectors_side_by_side(widest)
    is_good = planner.plan.rows == 1 and all(map(planner.runs_along_inner, group))
    panels = Panels(tuple(operand for operand, _, _ in rows), columns)
    times = ceil(planner.op.points / rows[0][0].columns / planner.plan.rows)
    loads_and_steps = tuple((load, steps) for _, load, steps in rows)
    return Use(panels, loads_and_steps, planner.op.dims[-1].var, times, is_good)


def _load_of(planner: Planner, reduce: Reduce, factor: Literal["shared", "streamed"]) -> Load | None:
    """The load that a factor of a dot is, but for a cast."""
    factors = find_factors(planner.analysis, reduce)
    if factors is None:
        return None
    node: Expr = getattr(factors, factor)
    node = node.x if isinstance(node, Cast) else node
    return node if isinstance(node, Load) else None


def _operand(load: Load | None, reduce: Reduce, columns: Var) -> Operand | None:
    """The matrix that a load reads, if it depends on steps and column alone: another at every point of those.

    Windows that overlap are no such matrix: they would take many times their memory.
    """
    if load is None or load.fill is not None or load.access.gathers:
        return None
    buffer = load.access.buffer
    extents = tuple(v.extent for v in reduce.over)
    if buffer.kind is BufferKind.STATE or prod(extents) * columns.extent > prod(buffer.shape):
        return None
    if not {v for i in load.access.affine for v in i.variables()} <= {*reduce.over, columns}:
        return None
    values = dict(zip(reduce.over, step_variables(extents), strict=True))
    values[columns] = Var(COLUMN, columns.extent)
    index = tuple(i.substitute(values) for i in load.access.affine)
    return Operand(buffer, index, extents, columns.extent)


def _packed_buffer(panels: Panels, number: int) -> Buffer:
    """Memory for (panel, steps, operand of the group, column of the panel)."""
    first = panels.operands[0]
    shape = (-(-first.columns // panels.lanes), *first.steps, len(panels.operands), panels.lanes)
    name = f"packed{number}_{first.buffer.name}"
    return Buffer.contiguous(name, first.buffer.dtype, shape, BufferKind.TEMPORARY)


def _copies(panels: Panels, packed: Buffer) -> list[OpInst]:
    """The operators that fill a packed buffer; columns past the end are zeros."""
    copies = []
    for g, operand in enumerate(panels.operands):
        p, steps, c = Var("panel", packed.shape[0]), step_variables(operand.steps), Var("lane", panels.lanes)
        column = Index.of(p) * panels.lanes + c
        index = tuple(i.substitute({Var(COLUMN, operand.columns): column}) for i in operand.index)
        is_ragged = operand.columns % panels.lanes != 0
        value = Load(Access(operand.buffer, index), 0 if is_ragged else None)
        place = Access(packed, (Index.of(p), *map(Index.of, steps), Index.of(g), Index.of(c)))
        name = operand.buffer.name
        dims = (Dim(p), *map(Dim, steps), Dim(c))
        copies.append(OpInst(f"pack_{name}", dims, (Store(place, value),), made_from=(name,)))
    return copies


def _rewritten(op: OpInst, uses: Sequence[Use], packed: Mapping[Panels, Buffer]) -> OpInst:
    """The operator with the loads of packed operands replaced."""
    loads: dict[int, Load] = {}
    for use in uses:
        if use.panels in packed:
            for g, (load, steps) in enumerate(use.loads):
                loads[id(load)] = _packed_load(use, packed[use.panels], g, steps)
    if not loads:
        return op
    old = [*(s.value for s in op.stores), *(g.value for s in op.stores for g in s.access.gathers)]
    new = dict(zip(map(id, old), rebuild(old, lambda node: loads.get(id(node)), lambda i: i), strict=True))
    stores = (
        Store(map_access(s.access, lambda e: new[id(e)], lambda i: i), new[id(s.value)], s.accumulate)
        for s in op.stores
    )
    return replace(op, stores=tuple(stores))


def _packed_load(use: Use, buffer: Buffer, g: int, steps: Sequence[Var]) -> Load:
    column, lanes = Index.of(use.along), use.panels.lanes
    of_group = g if len(use.panels.operands) > 1 else 0
    return Load(Access(buffer, (column // lanes, *map(Index.of, steps), Index.of(of_group), column % lanes)))
