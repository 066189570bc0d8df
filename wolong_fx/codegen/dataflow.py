"""Who must run before whom: data dependences between operators and loops, and their levels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from wolong_fx.codegen.loops import Element
from wolong_fx.ir.program import OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind


def is_ordered(store: Store) -> bool:
    """Whether a store must follow earlier writes of its buffer.

    Several operators may write disjoint parts of one buffer side by side (a concat); a store that adds to
    what is there, or goes where data says, may touch any part. What the
    caller passed held values before, which others may have to read first.
    """
    is_state = store.access.buffer.kind is BufferKind.STATE
    return is_state or store.accumulate is not None or bool(store.access.gathers)


def dependences(ops: Sequence[Element]) -> list[set[int]]:
    """For each element, the positions of those it must follow; `ops` is in an order that respects them."""
    writers: dict[Buffer, list[int]] = defaultdict(list)
    readers: dict[Buffer, list[int]] = defaultdict(list)
    found: list[set[int]] = []
    for position, op in enumerate(ops):
        before = {w for buffer in op.reads() for w in writers[buffer]}
        for store in op.stores if isinstance(op, OpInst) else ():
            if is_ordered(store):
                before.update(writers[store.access.buffer], readers[store.access.buffer])
        found.append(before - {position})
        for buffer in op.reads():
            readers[buffer].append(position)
        for buffer in op.writes():
            writers[buffer].append(position)
    return found


def levels(before: Sequence[set[int]]) -> list[int]:
    """The earliest stage of each operator: one more than the latest it must follow."""
    out: list[int] = []
    for predecessors in before:
        out.append(1 + max((out[p] for p in predecessors), default=-1))
    return out
