"""Results are computed where they are wanted: a copy into an output, or in a loop into the stack of all its
results, disappears into the operator that fills it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from wolong_fx.codegen.alignment import find_point_map
from wolong_fx.codegen.loops import Element, Exit, all_carry_buffers, map_ops, walk_ops
from wolong_fx.codegen.rewrite import rewrite_op
from wolong_fx.ir.expr import Access, Load
from wolong_fx.ir.index import contiguous_strides, delinearise
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger


def assign_outputs(ops: list[Element], ledger: Ledger) -> list[Element]:
    """Give each temporary that is copied whole into an output or a loop's stack its place there."""
    home: dict[Buffer, _Copy] = {}
    kept: list[Element] = []
    exits = [op for op in ops if isinstance(op, Exit)]
    stacks = {b for leave in exits for b in leave.stacks}
    pinned = all_carry_buffers(ops).union(*(leave.reads() for leave in exits))
    touches, made_here = _touches(ops), {b for op in ops for b in op.writes()} - pinned
    for op in ops:
        copy = _find_copy(op, stacks)
        if copy is None or copy.source in home or copy.source not in made_here or not copy.can_move(touches):
            kept.append(op)
            continue
        home[copy.source] = copy
        because = f"{copy.source} is computed in {copy.target} itself"
        ledger.note("assign-outputs", ",".join(op.made_from), "removed", because)
    return map_ops(kept, lambda op: _moved(op, home)) if home else kept


@dataclass(frozen=True)
class _Copy:
    """An operator that does nothing but copy all of a temporary elsewhere, element by element."""

    op: OpInst
    load: Access
    store: Access

    @property
    def source(self) -> Buffer:
        return self.load.buffer

    @property
    def target(self) -> Buffer:
        return self.store.buffer

    @property
    def is_plain(self) -> bool:
        """Whether the temporary's coordinates are the output's, whatever they are."""
        a, b = self.source, self.target
        return (a.shape, a.strides) == (b.shape, b.strides) and self.load.index == self.store.index

    @property
    def is_reshape(self) -> bool:
        """Whether the elements follow each other in the output as they do in the temporary."""
        are_dense = all(b.strides == contiguous_strides(b.shape) for b in (self.source, self.target))
        return are_dense and not self.load.gathers and self.load.offset() == self.store.offset()

    def redirect(self, access: Access) -> Access | None:
        """Where in the target an element of the temporary is; None if that cannot be solved for."""
        if self.is_plain:
            return Access(self.target, access.index)
        points = find_point_map(self.op, self.load, access)
        if points is None:
            return self._reshaped(access)
        return Access(self.target, tuple(i.substitute(points) for i in self.store.affine))

    def _reshaped(self, access: Access) -> Access | None:
        """The same place counted in the output's rows; None if that is no coordinate a dimension: readers
        would no longer find what a writer computes.
        """
        if not self.is_reshape or access.gathers:
            return None
        index = delinearise(access.offset(), self.target.shape)
        return Access(self.target, index) if all(len(i.terms) <= 1 for i in index) else None

    def can_move(self, touches: Mapping[Buffer, list[_Touch]]) -> bool:
        """Whether everybody who touches the temporary can do so in the target."""
        if self.is_plain:
            return True
        return all(not filled and self.redirect(access) for access, filled in touches[self.source])


_Touch = tuple[Access, bool]
"""An access, and whether it may look past the edge of its buffer."""


def _find_copy(op: Element, stacks: Collection[Buffer]) -> _Copy | None:
    if not isinstance(op, OpInst) or len(op.stores) != 1 or any(d.sequential for d in op.dims):
        return None
    store, value = op.stores[0], op.stores[0].value
    is_result = store.access.buffer.kind is BufferKind.OUTPUT or store.access.buffer in stacks
    if not is_result or store.accumulate or not isinstance(value, Load):
        return None
    source = value.access.buffer
    if source.kind is not BufferKind.TEMPORARY or value.fill is not None:
        return None
    copy = _Copy(op, value.access, store.access)
    fills = copy.target in stacks or copy.target.elements == op.points
    return copy if fills and _is_whole(copy) and _keeps_lanes(copy) else None


def _is_whole(copy: _Copy) -> bool:
    """Whether every element of the temporary takes part, once."""
    same_type = copy.source.dtype is copy.target.dtype
    same_size = copy.source.elements == copy.op.points
    if not same_type or not same_size or copy.load.gathers or copy.store.gathers:
        return False
    return copy.is_plain or copy.is_reshape or find_point_map(copy.op, copy.load, copy.load) is not None


def _keeps_lanes(copy: _Copy) -> bool:
    """Whether one step in the temporary is one step in the output: its writers still store vectors."""
    for dim in copy.op.dims:
        if copy.load.offset().coefficient(dim.var) in (1, -1):
            return copy.store.offset().coefficient(dim.var) == copy.load.offset().coefficient(dim.var)
    return True


def _touches(ops: Iterable[Element]) -> dict[Buffer, list[_Touch]]:
    found: dict[Buffer, list[_Touch]] = defaultdict(list)
    for op, _ in walk_ops(ops):
        for load in op.loads():
            found[load.access.buffer].append((load.access, load.fill is not None))
        for store in op.stores:
            found[store.access.buffer].append((store.access, False))
    return found


def _moved(op: OpInst, home: dict[Buffer, _Copy]) -> OpInst:
    if not any(b in home for b in (*op.reads(), *op.writes())):
        return op

    def access(old: Access) -> Access:
        return old if old.buffer not in home else home[old.buffer].redirect(old)  # type: ignore[return-value]

    return rewrite_op(op, access=access)
