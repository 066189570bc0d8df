"""Memory of what a loop hands from trip to trip.

A value that is read only where it is replaced, by the operator that replaces it, stays in one place: the
block that owns an element finds there what it left. Any other value has two places, which trips use in turn:
everybody may read the old one while the new one is written, and one barrier a trip is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wolong_fx.codegen.loops import Carry, Element, LoopInst, walk_loops, walk_ops
from wolong_fx.codegen.rewrite import Relocation
from wolong_fx.ir.index import Index, contiguous_strides
from wolong_fx.ir.types import Buffer, BufferKind

ALIGNMENT = 64
"""Bytes; both of two places start at a multiple, so that no vector straddles lines for their sake."""


Moved = Mapping[Buffer, Relocation]


@dataclass(frozen=True)
class Places:
    """Where carried values are: in their loops, where it depends on the trip, and outside of them."""

    outside: Moved
    inside: Mapping[LoopInst, Moved]


def place_carries(elements: Sequence[Element]) -> Places:
    """Memory for the carried values of all loops."""
    outside: dict[Buffer, Relocation] = {}
    inside = {loop: _place(loop, outside) for loop in walk_loops(elements)}
    return Places(outside, inside)


def _place(loop: LoopInst, outside: dict[Buffer, Relocation]) -> Moved:
    """Where a loop's body finds its carried values; `outside` learns where they are before and after it."""
    inside: dict[Buffer, Relocation] = {}
    for carry in loop.carries:
        if _is_read_where_replaced(carry, loop):
            inside[carry.new] = outside[carry.new] = (carry.old, ())
            continue
        both, t = _two_places(carry), Index.of(loop.var)
        inside |= {carry.old: (both, (t % 2,)), carry.new: (both, ((t + 1) % 2,))}
        outside |= {carry.old: (both, (Index(0),)), carry.new: (both, (Index(loop.var.extent % 2),))}
    return inside


def _is_read_where_replaced(carry: Carry, loop: LoopInst) -> bool:
    """Whether one operator alone touches a carried value, and each point of it the element it replaces."""
    users = [op for op, _ in walk_ops(loop.body) if {carry.old, carry.new} & {*op.reads(), *op.writes()}]
    if len(users) != 1 or users[0] not in loop.body or any(d.sequential for d in users[0].dims):
        return False
    (op,) = users
    stores = [s for s in op.stores if s.access.buffer is carry.new]
    loads = [load for load in op.loads() if load.access.buffer is carry.old]
    if len(stores) != 1 or stores[0].access.gathers:
        return False
    here = stores[0].access.index
    return all(load.fill is None and load.access.index == here for load in loads)


def _two_places(carry: Carry) -> Buffer:
    old = carry.old
    step = -(-old.span_bytes // ALIGNMENT) * ALIGNMENT // old.dtype.bytes
    strides = (step, *contiguous_strides(old.shape))
    return Buffer(old.name, old.dtype, (2, *old.shape), BufferKind.TEMPORARY, strides)
