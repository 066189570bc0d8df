"""What a kernel computes for dots alone to stream is stored in their panels at once, and never copied.

The gradients of a recurrence's gates, stacked over its steps, are read by the GEMM of the weights' gradient,
and by little else. Their memory may as well have its layout: whoever stores or reads an element computes
where it is in the panels. That costs nothing where vectors run along the columns: panels are whole vectors
wide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wolong_fx.codegen.cpp.panels import COLUMN, Operand, Panels, step_variables
from wolong_fx.codegen.loops import Element, LoopInst, all_carry_buffers, map_bodies, map_ops, walk_ops
from wolong_fx.codegen.rewrite import rewrite_op
from wolong_fx.ir.expr import Access
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer, BufferKind


@dataclass(frozen=True)
class Place:
    """Where the elements of a buffer are, as operand `number` of panels that `packed` holds.

    order: for each dimension of the buffer the variable of the operand that walks it
    """

    packed: Buffer
    panels: Panels
    number: int
    order: tuple[Var, ...]

    def access(self, old: Access) -> Access:
        """The same element in the panels."""
        at = dict(zip(self.order, old.affine, strict=True))
        column = at[_column(self.panels.operands[self.number])]
        steps = [at[v] for v in step_variables(self.panels.operands[self.number].steps)]
        lanes = self.panels.lanes
        return Access(self.packed, (column // lanes, *steps, Index.of(self.number), column % lanes))

    def column_of(self, access: Access) -> Index:
        return access.affine[self.order.index(_column(self.panels.operands[self.number]))]


def find_places(packed: Mapping[Panels, Buffer], elements: Sequence[Element]) -> dict[Buffer, Place]:
    """The buffers that can lie in the panels they are packed to, those of a group all or none."""
    found: dict[Buffer, Place] = {}
    times = Counter(o.buffer for panels in packed for o in panels.operands)
    pinned = all_carry_buffers(elements)
    accesses = _accesses(elements)
    for panels, buffer in packed.items():
        places = {o.buffer: _find_place(buffer, panels, n) for n, o in enumerate(panels.operands)}
        if all(
            place and times[old] == 1 and old not in pinned and _runs_along_columns(place, accesses[old])
            for old, place in places.items()
        ):
            found |= {old: place for old, place in places.items() if place}
    return found


def place_in_panels(elements: Sequence[Element], places: Mapping[Buffer, Place]) -> list[Element]:
    """The elements with every access to these buffers going to their panels."""
    if not places:
        return list(elements)

    def access(old: Access) -> Access:
        return places[old.buffer].access(old) if old.buffer in places else old

    moved = map_ops(elements, lambda op: rewrite_op(op, access=access) if _touches(op, places) else op)
    return map_bodies(moved, lambda loop: _with_stacks(loop, places))


def _touches(op: OpInst, places: Mapping[Buffer, Place]) -> bool:
    return any(b in places for b in (*op.reads(), *op.writes()))


def _with_stacks(loop: LoopInst, places: Mapping[Buffer, Place]) -> LoopInst:
    stacks = (places[b].packed if b in places else b for b in loop.stacks)
    return replace(loop, stacks=tuple(dict.fromkeys(stacks)))


def _find_place(packed: Buffer, panels: Panels, number: int) -> Place | None:
    """Where a temporary is in panels that hold each of its elements once, and nothing else."""
    operand = panels.operands[number]
    buffer, variables = operand.buffer, [*step_variables(operand.steps), _column(operand)]
    walked = {Index.of(v): v for v in variables}
    order = tuple(walked[i] for i in operand.index if i in walked)
    is_own = buffer.kind is BufferKind.TEMPORARY and buffer.dtype is packed.dtype
    is_whole = len(set(order)) == len(variables) and tuple(v.extent for v in order) == buffer.shape
    return Place(packed, panels, number, order) if is_own and is_whole and _is_even(operand, panels) else None


def _is_even(operand: Operand, panels: Panels) -> bool:
    """Whether the last panel is as full as the others."""
    return operand.columns % panels.lanes == 0


def _column(operand: Operand) -> Var:
    return Var(COLUMN, operand.columns)


def _accesses(elements: Iterable[Element]) -> dict[Buffer, list[tuple[OpInst, Access, bool]]]:
    """Who touches each buffer where, and whether they may look past its edge."""
    found: dict[Buffer, list[tuple[OpInst, Access, bool]]] = defaultdict(list)
    for op, _ in walk_ops(elements):
        for load in op.loads():
            found[load.access.buffer].append((op, load.access, load.fill is not None))
        for store in op.stores:
            found[store.access.buffer].append((op, store.access, False))
    return found


def _runs_along_columns(place: Place, accesses: Iterable[tuple[OpInst, Access, bool]]) -> bool:
    """Whether vectors of everybody are vectors in the panels too."""
    return all(
        not looks_past
        and not access.gathers
        and op.dims
        and place.column_of(access) == Index.of(op.dims[-1].var)
        for op, access, looks_past in accesses
    )
