"""Operators whose result is read in parts become one operator for each part.

The gates of a recurrent cell are often computed side by side (one product of 4 H columns, then a chunk for
each gate), which no reader of H columns can take in whole. Cut where the readers cut it, each part is an
operator over the reader's own domain: fusion then joins all of them to it, and the dots of the parts share
one loop over their common operand. What nobody reads is not computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeGuard

from wolong_fx.codegen.loops import Element, Exit
from wolong_fx.codegen.rewrite import rewrite_op, substitute_variables
from wolong_fx.ir.expr import Access, Load, Reduce, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger

MOST_PARTS = 8
"""Parts of one operator: more than the gates of any cell are rather the elements of a list."""

Part = tuple[int, int]
"""First position of a part, and one past its last."""


def split_ops(ops: list[Element], ledger: Ledger) -> list[Element]:
    """Split, readers before what they read: a sum of two products is cut first, then the products."""
    return _Splitter(ops, ledger).run()


@dataclass(frozen=True)
class _Cut:
    """How the one store of an operator is divided: along a dimension of its buffer, into disjoint parts."""

    axis: int
    parts: tuple[Part, ...]


@dataclass
class _Splitter:
    """The pieces that each operator has become, in the order of the operators, and who reads which buffer."""

    ops: list[Element]
    ledger: Ledger
    pieces: list[list[Element]] = field(default_factory=list)
    readers: dict[Buffer, set[int]] = field(default_factory=lambda: defaultdict(set))
    writers: dict[Buffer, set[int]] = field(default_factory=lambda: defaultdict(set))

    @cached_property
    def is_body(self) -> bool:
        """Whether the operators are run again and again: a stage saved is saved in every trip."""
        return any(isinstance(op, Exit) for op in self.ops)

    def run(self) -> list[Element]:
        self.pieces = [[op] for op in self.ops]
        for position, op in enumerate(self.ops):
            for buffer in op.reads():
                self.readers[buffer].add(position)
            for buffer in op.writes():
                self.writers[buffer].add(position)
        for position in reversed(range(len(self.ops))):
            cut = self._find_cut(position)
            if cut is not None:
                self._split(position, cut)
        return [piece for pieces in self.pieces for piece in pieces]

    def _find_cut(self, position: int) -> _Cut | None:
        """Where to cut an operator, if its readers agree and one of them reads several parts."""
        op = self.ops[position]
        if not _can_be_cut(op):
            return None
        target = op.stores[0].access.buffer
        if self.writers[target] != {position}:
            return None
        readers = [[_reads_of(piece, target) for piece in self.pieces[r]] for r in self.readers[target]]
        if any(reads is None for pieces in readers for reads in pieces):
            return None
        by_reader = [[a for reads in pieces for a in reads or ()] for pieces in readers]
        for axis in range(len(target.shape)):
            parts = _find_parts(op, axis, by_reader, self.is_body)
            if parts is not None:
                return _Cut(axis, parts)
        return None

    def _split(self, position: int, cut: _Cut) -> None:
        op = self.ops[position]
        assert isinstance(op, OpInst)
        whole = op.stores[0].access.buffer
        buffers = {part: _part_of(whole, cut.axis, part) for part in cut.parts}
        self.pieces[position] = [_piece(op, cut.axis, part, buffer) for part, buffer in buffers.items()]
        for reader in self.readers.pop(whole):
            moved = (_redirected(piece, whole, cut.axis, buffers) for piece in self.pieces[reader])
            self.pieces[reader] = list(moved)
            for buffer in buffers.values():
                self.readers[buffer].add(reader)
        self.ledger.note(
            "split-ops", ",".join(op.made_from), "replaced", f"by {len(buffers)} parts, as it is read"
        )


def _can_be_cut(op: Element) -> TypeGuard[OpInst]:
    """Whether it fills one temporary and any part of that could be computed alone."""
    if not isinstance(op, OpInst) or len(op.stores) != 1 or any(d.sequential for d in op.dims):
        return False
    store = op.stores[0]
    return (
        store.access.buffer.kind is BufferKind.TEMPORARY
        and store.accumulate is None
        and not store.access.gathers
    )


def _reads_of(op: Element, buffer: Buffer) -> list[Access] | None:
    """Accesses to a buffer; None if one of them could not be directed to a part of it."""
    if not isinstance(op, OpInst) or any(s.access.buffer is buffer for s in op.stores):
        return None
    loads = [load for load in op.loads() if load.access.buffer is buffer]
    inside = {id(n) for e in op.expressions() if isinstance(e, Reduce) for n in walk(e.args)}
    if any(load.fill is not None or load.access.gathers or id(load) in inside for load in loads):
        return None
    return [load.access for load in loads]


def _find_parts(
    op: OpInst, axis: int, readers: Sequence[Sequence[Access]], is_body: bool
) -> tuple[Part, ...] | None:
    """Equal parts along an axis that is one dimension of the operator, each access reading one of them.

    One reader has to read several, so that it takes them in; in the body of a loop, each reader may take one.
    """
    dim = _dim_along(op, axis)
    if dim is None or not _shares_nothing_along(op, dim):
        return None
    read = [{_span(access, axis) for access in accesses} for accesses in readers]
    parts = sorted(set().union(*read))
    widths = {end - first for first, end in parts}
    is_disjoint = all(a[1] <= b[0] for a, b in pairwise(parts))
    if not 2 <= len(parts) <= MOST_PARTS or len(widths) > 1 or widths == {1} or not is_disjoint:
        return None
    return tuple(parts) if is_body or any(len(of_one) > 1 for of_one in read) else None


def _dim_along(op: OpInst, axis: int) -> Dim | None:
    """The dimension that the store walks an axis of its buffer along, one position a point."""
    place = op.stores[0].access.affine[axis]
    return next((d for d in op.dims if place == Index.of(d.var)), None)


def _shares_nothing_along(op: OpInst, dim: Dim) -> bool:
    """Whether no reduction serves all points along `dim`: every part would compute it again."""
    for node in op.expressions():
        if isinstance(node, Reduce):
            loads = (n for n in walk(node.args) if isinstance(n, Load))
            if not any(dim.var in i.variables() for load in loads for i in load.access.affine):
                return False
    return True


def _span(access: Access, axis: int) -> Part:
    low, high = access.affine[axis].bounds()
    return low, high + 1


def _part_of(whole: Buffer, axis: int, part: Part) -> Buffer:
    first, end = part
    shape = (*whole.shape[:axis], end - first, *whole.shape[axis + 1 :])
    return Buffer.contiguous(f"{whole.name}_at{first}", whole.dtype, shape, BufferKind.TEMPORARY)


def _piece(op: OpInst, axis: int, part: Part, target: Buffer) -> OpInst:
    """The operator over one part, stored to a buffer of its own."""
    first, end = part
    old = _dim_along(op, axis)
    assert old is not None
    new = Var(old.var.name, end - first)
    dims = tuple(Dim(new) if d is old else d for d in op.dims)
    reduced = [v for n in op.expressions() if isinstance(n, Reduce) for v in n.over]
    inner = {v: Var(f"{v.name}_at{first}", v.extent) for v in reduced}
    cut = substitute_variables(op, {old.var: Index.of(new) + first, **inner}, dims)
    place = cut.stores[0].access.affine
    index = (*place[:axis], place[axis] - first, *place[axis + 1 :])
    store = replace(cut.stores[0], access=Access(target, index))
    return replace(cut, name=f"{op.name}_at{first}", stores=(store,))


def _redirected(op: Element, whole: Buffer, axis: int, buffers: dict[Part, Buffer]) -> OpInst:
    """A reader of the whole that reads its parts."""
    assert isinstance(op, OpInst)

    def access(old: Access) -> Access:
        if old.buffer is not whole:
            return old
        part = _span(old, axis)
        place = old.affine
        index = (*place[:axis], place[axis] - part[0], *place[axis + 1 :])
        return Access(buffers[part], index)

    return rewrite_op(op, access=access)
