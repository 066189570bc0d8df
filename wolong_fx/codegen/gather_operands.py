"""Siblings that stream the same weights, but whose operands lie apart, have these gathered.

They become one product of many rows instead of many products of one. The nodes of a parse tree, the calls
of a shared layer: what they read was computed here and there, at different times. A temporary is moved to its
row of the gathered operand if nothing else decides where it lies; otherwise its elements are copied there.
The weights are then streamed once instead of once a sibling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from wolong_fx.codegen.rewrite import Relocation, relocate_buffers, rewrite_op, stored_expressions
from wolong_fx.ir.expr import Access, Expr, Load, Reduce, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.runtime.machine_costs import MachineCosts

CACHE_LINE = 64
"""Bytes that one core hands another at once."""


@dataclass
class Moves:
    """Where buffers went: into a row of a larger one, itself perhaps a row of another."""

    to: dict[Buffer, Relocation] = field(default_factory=dict)
    rows: dict[Buffer, list[Buffer]] = field(default_factory=dict)

    def relocate(self, op: OpInst) -> OpInst:
        return relocate_buffers(op, self.to)

    def stack(self, buffers: Sequence[Buffer]) -> Buffer:
        """A new temporary that has these as its rows."""
        whole = _like_rows(f"{buffers[0].name}_x{len(buffers)}", buffers)
        for row, buffer in enumerate(buffers):
            self.move(buffer, whole, row)
        return whole

    def move(self, buffer: Buffer, whole: Buffer, row: int) -> None:
        """Put a buffer, and what was put into it before, into a row of `whole`."""
        moved = self.rows.pop(buffer, [])
        for inner in moved:
            self.to[inner] = (whole, (Index(row), *self.to[inner][1]))
        self.to[buffer] = (whole, (Index(row),))
        self.rows.setdefault(whole, []).extend([buffer, *moved])


def _like_rows(name: str, buffers: Sequence[Buffer]) -> Buffer:
    """A temporary with room for buffers of one shape."""
    first = buffers[0]
    return Buffer.contiguous(name, first.dtype, (len(buffers), *first.shape), BufferKind.TEMPORARY)


@dataclass(frozen=True)
class Gathering:
    """copies: operators that fill rows of gathered operands; members: the siblings, reading those rows."""

    copies: list[OpInst]
    members: list[OpInst]


def find_gathering(
    ops: Sequence[OpInst],
    stretches: int,
    moves: Moves,
    pinned: Collection[Buffer],
    costs: MachineCosts,
) -> Gathering | None:
    """How to run siblings as one although their operands lie apart; None if that is impossible or a loss.

    ops: isomorphic, with temporaries that they read left open; as they were before anything moved
    stretches: operators that they would be without gathering
    """
    loads = [_loads(op) for op in ops]
    here = [_loads(moves.relocate(op)) for op in ops]
    apart = [p for p in range(len(loads[0])) if not _is_regular([of_op[p].access for of_op in here])]
    rows = {p: tuple(of_op[p].access.buffer for of_op in loads) for p in apart}
    if not all(_can_gather([of_op[p].access for of_op in loads]) for p in apart):
        return None
    free = _find_free(rows, moves, pinned)
    if _seconds_saved(ops[0], loads, stretches, costs) <= _seconds_of_copies(rows, free, costs):
        return None
    return _gather(ops, loads, rows, free, moves)


def _loads(op: OpInst) -> list[Load]:
    return [e for e in walk(stored_expressions(op)) if isinstance(e, Load)]


def _constants(access: Access) -> tuple[int, ...]:
    """What may differ between the indices of isomorphic operators."""
    return tuple(i.constant for i in access.affine)


def _is_regular(accesses: Sequence[Access]) -> bool:
    """Whether all are of one buffer, with constants that grow by equal steps."""
    if len({id(a.buffer) for a in accesses}) > 1:
        return False
    steps = {
        tuple(b - a for a, b in zip(_constants(one), _constants(other), strict=True))
        for one, other in pairwise(accesses)
    }
    return len(steps) <= 1


def _can_gather(accesses: Sequence[Access]) -> bool:
    """Whether all read the same elements of temporaries."""
    are_temporary = all(a.buffer.kind is BufferKind.TEMPORARY for a in accesses)
    return are_temporary and not accesses[0].gathers and len({_constants(a) for a in accesses}) == 1


def _find_free(
    rows: Mapping[int, tuple[Buffer, ...]], moves: Moves, pinned: Collection[Buffer]
) -> frozenset[Buffer]:
    """Temporaries that may lie anywhere: one row of one operand alone is made of each."""
    distinct = set(rows.values())
    found = [b for buffers in distinct for b in buffers]
    return frozenset(b for b in found if found.count(b) == 1 and b not in moves.to and b not in pinned)


def _seconds_saved(op: OpInst, loads: Sequence[Sequence[Load]], stretches: int, costs: MachineCosts) -> float:
    """Saved by streaming once what all siblings read: where few rows wait for many weights.

    Weights are taken to come from the second cache. The forecast of whole programs is no use here: it tells
    multiply-adds from memory before operands are packed, and took gathered siblings of an irregular tree to
    be 2 % slower that were 1.5 times as fast.
    """
    inside = {id(n) for e in op.expressions() if isinstance(e, Reduce) for n in walk(e.args)}
    streamed = macs = 0.0
    for position, load in enumerate(loads[0]):
        accesses = [of_op[position].access for of_op in loads]
        if id(load) in inside and len({(id(a.buffer), _constants(a)) for a in accesses}) == 1:
            streamed += _elements(load) * load.access.buffer.dtype.bytes
    for node in op.expressions():
        if isinstance(node, Reduce):
            macs += op.points * prod(v.extent for v in node.over)
    a_sibling, stream = macs / costs.fma_rate, streamed / costs.l2_rate
    every, share = a_sibling * len(loads), a_sibling * len(loads) / stretches
    return stretches * max(share, stream) - max(every, stream)


def _elements(load: Load) -> int:
    return prod(v.extent for v in {v for i in load.access.affine for v in i.variables()})


def _seconds_of_copies(
    rows: Mapping[int, tuple[Buffer, ...]], free: Collection[Buffer], costs: MachineCosts
) -> float:
    """Elements read and written; finding each copy, whose first line another core wrote; their stage."""
    copied = [b for buffers in set(rows.values()) for b in buffers if b not in free]
    bytes_moved = sum(2 * b.elements * b.dtype.bytes for b in copied)
    a_copy = costs.block + CACHE_LINE / costs.handover_rate
    return bytes_moved / costs.l2_rate + len(copied) * a_copy + bool(copied) * costs.barrier


def _gather(
    ops: Sequence[OpInst],
    loads: Sequence[Sequence[Load]],
    rows: Mapping[int, tuple[Buffer, ...]],
    free: Collection[Buffer],
    moves: Moves,
) -> Gathering:
    wholes = {
        buffers: _like_rows(f"{ops[0].name}_operand{n}", buffers)
        for n, buffers in enumerate(dict.fromkeys(rows.values()))
    }
    copies = []
    for buffers, whole in wholes.items():
        for row, buffer in enumerate(buffers):
            if buffer in free:
                moves.move(buffer, whole, row)
            else:
                copies.append(moves.relocate(_copy(buffer, whole, row)))
    members = []
    for row, (op, own) in enumerate(zip(ops, loads, strict=True)):
        gathered = {id(own[p]): _row_load(own[p], wholes[buffers], row) for p, buffers in rows.items()}
        members.append(moves.relocate(rewrite_op(op, change=_replacing(gathered))))
    return Gathering(copies, members)


def _replacing(new: Mapping[int, Load]) -> Callable[[Expr], Expr | None]:
    def change(node: Expr) -> Expr | None:
        return new.get(id(node))

    return change


def _row_load(load: Load, whole: Buffer, row: int) -> Load:
    return Load(Access(whole, (Index(row), *load.access.index)), load.fill)


def _copy(buffer: Buffer, whole: Buffer, row: int) -> OpInst:
    """The operator that copies a buffer to its row."""
    variables = [Var(f"d{i}", n) for i, n in enumerate(buffer.shape)]
    at = tuple(Index.of(v) for v in variables)
    dims = tuple(Dim(v) for v in variables if v.extent != 1)
    store = Store(Access(whole, (Index(row), *at)), Load(Access(buffer, at)))
    return OpInst(f"gather_{buffer.name}_{row}", dims, (store,), made_from=(buffer.name,))
