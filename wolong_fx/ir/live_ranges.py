"""When the bytes of a temporary matter: from the stage that first touches it to the one that last does.

What is touched in a loop matters as long as the loop, since a trip may find there what another one left. Not
so a value of one trip: one that every trip writes whole before it reads any of it, and that nothing outside
of the loop touches. Such a value matters only between its own stages, in each trip anew.

That it is written whole is proved by counting: the stage of the body that touches it first only writes it,
by stores that do not meet (the verifier and the check for races see to that) and are as many as its elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wolong_fx.ir.expr import Access
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind


@dataclass(frozen=True)
class LiveRange:
    """First and last stage, both included, in which a buffer must keep its bytes.

    is_stretched: over a loop, whose next trip may read after the last stage what was there before the first
    """

    first: int
    last: int
    is_stretched: bool = False

    def overlaps(self, other: LiveRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    def joined(self, other: LiveRange) -> LiveRange:
        first, last = min(self.first, other.first), max(self.last, other.last)
        return LiveRange(first, last, self.is_stretched or other.is_stretched)


def live_ranges(program: Program) -> dict[Buffer, LiveRange]:
    """Live range of every temporary; stages are numbered in program order, those of a loop once."""
    everywhere = Counter(b for op in program.ops() for b in _temporaries(op))
    return _Lives(everywhere).of(program.body, 0)[0]


@dataclass(frozen=True)
class _Lives:
    """everywhere: how many operators of the whole program touch a buffer."""

    everywhere: Mapping[Buffer, int]

    def of(self, body: Sequence[Item], start: int) -> tuple[dict[Buffer, LiveRange], int]:
        """Live ranges within a body whose first stage has number `start`, and the number behind its last."""
        found: dict[Buffer, LiveRange] = {}
        for item in body:
            here, end = self._of_item(item, start)
            for buffer, span in here.items():
                found[buffer] = found[buffer].joined(span) if buffer in found else span
            start = end
        return found, start

    def _of_item(self, item: Item, start: int) -> tuple[dict[Buffer, LiveRange], int]:
        if isinstance(item, Stage):
            touched = [b for op in item.ops for b in _temporaries(op)]
            return dict.fromkeys(touched, LiveRange(start, start)), start + 1
        inside, end = self.of(item.body, start)
        whole = LiveRange(start, max(start, end - 1), is_stretched=True)
        own = self._values_of_a_trip(item)
        return {b: span if b in own else whole for b, span in inside.items()}, end

    def _values_of_a_trip(self, loop: Loop) -> set[Buffer]:
        """What each trip writes whole, reads and leaves behind."""
        inside = Counter(b for op in _ops(loop.body) for b in _temporaries(op))
        varying = {a.buffer for op in _ops(loop.body) for a in _accesses(op) if _depends(a, loop.var)}
        only_here = {b for b, count in inside.items() if count == self.everywhere[b]} - varying
        return {b for b in only_here if _is_written_whole_first(b, loop.body)}


def _is_written_whole_first(buffer: Buffer, body: Sequence[Item]) -> bool:
    """Whether the first stage of a body that touches a buffer fills it, and does nothing else with it."""
    first = next(item for item in body if any(buffer in _temporaries(op) for op in _ops([item])))
    if not isinstance(first, Stage) or any(buffer in op.reads() for op in first.ops):
        return False
    written = 0
    for op in first.ops:
        stores = [s for s in op.stores if s.access.buffer is buffer]
        if any(s.accumulate or s.access.gathers for s in stores) or len(stores) > 1:
            return False
        written += op.points * len(stores)
    return written == buffer.elements


def _ops(body: Sequence[Item]) -> Iterator[OpInst]:
    for item in body:
        yield from item.ops if isinstance(item, Stage) else _ops(item.body)


def _temporaries(op: OpInst) -> list[Buffer]:
    """Each once, in the order of the operator's text: the same program has the same plan in every process."""
    return list(dict.fromkeys(b for b in (*op.reads(), *op.writes()) if b.kind is BufferKind.TEMPORARY))


def _accesses(op: OpInst) -> Iterator[Access]:
    yield from (load.access for load in op.loads())
    yield from (store.access for store in op.stores)


def _depends(access: Access, var: Var) -> bool:
    return any(var in index.variables() for index in access.affine)
