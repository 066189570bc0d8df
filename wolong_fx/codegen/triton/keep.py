"""What a block keeps in registers while a loop runs: what every trip reads, and what it alone carries on.

Everything here holds of a loop whose stage has no more virtual blocks than the grid has blocks: block v runs
virtual block v in every trip, and nothing else of that stage.

*An invariant* is a load that finds the same in every trip. It is read once, before the loop, if
1. its address does not depend on the loop's variable and is not gathered;
2. nothing in the loop writes its buffer; nor its bytes, for the buffer is alive in the whole loop, and the
   planner gives the bytes of a living buffer to no other;
3. what it finds is there before the loop begins: either nothing in the program writes the buffer, or no
   barrier of the body stands between the loop's begin and the first trip's load, so that whatever orders the
   writers before that load (happens_before.py has proved that something does) orders them before the loop.

*A private state* is an element that a virtual block reads and writes in every trip and that nobody else
touches: its loads become a variable that the loop carries, and only the last trip stores it. That is right if
1. all accesses of the buffer in the loop are those of one operator, at one index, neither gathered nor
   filled nor accumulated, which does not depend on the loop's variable; so no one sees that memory is not
   written before the last trip, and behind the last trip's store it is what it would have been;
2. the index tells all points of the operator's domain apart: the lane that reads an element is the one
   that wrote it a trip before;
3. as 3 above, for the first trip's load.
The value is kept as it is stored, rounded to its type, so that not a bit changes.

A block without a virtual block of its own reads another's invariants and states, in bounds and to no end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from wolong_fx.codegen.analysis import Analysis
from wolong_fx.codegen.triton.reductions import SMALLEST_DOT, WHOLE, WHOLE_DOT
from wolong_fx.ir.expr import Load, Reduce
from wolong_fx.ir.footprint import is_injective
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage, Store
from wolong_fx.ir.types import Buffer

KEPT_BYTES = 128 << 10
"""Bytes that a block keeps over a loop at most: 128 registers of each of 256 threads, half of what a
multiprocessor has."""


@dataclass(frozen=True)
class Kept:
    """What an operator's blocks keep over the trips of the loop around it, by position.

    invariants: among its loads
    states: position among its stores, and positions among its loads that read what it stores
    """

    invariants: frozenset[int] = frozenset()
    states: tuple[tuple[int, frozenset[int]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.invariants or self.states)


NOTHING = Kept()

WARPS, MORE_WARPS = 4, 8
"""Warps of a block, and of one that holds much."""

MUCH = 1 << 13
"""Elements of weights or products that a block of four warps can hold: 64 registers of each thread."""


def warps_for(found: dict[OpInst, Kept]) -> int:
    """Warps of the blocks of a kernel that keeps this."""
    held = [_elements(op, kept) for op, kept in found.items() if kept.invariants]
    return MORE_WARPS if max(held, default=0) >= MUCH else WARPS


def _elements(op: OpInst, kept: Kept) -> int:
    """Elements of the weights that a block keeps, or of the products that they are factors of, if those are
    more."""
    sizes, loads = _Sizes(op), op.loads()
    weights = sum((sizes.bytes_of(loads[i]) or 0) // 4 for i in kept.invariants)
    return max(weights, *(sizes.products_of(loads[i]) for i in kept.invariants))


def find_kept(program: Program, room: int = KEPT_BYTES) -> dict[OpInst, Kept]:
    """What may be kept of every operator that stands directly in a loop; those that keep nothing are left
    out.

    room: bytes of a block, for all operators of one loop
    """
    written = frozenset(b for op in program.ops() for b in op.writes())
    found: dict[OpInst, Kept] = {}
    for loop in _loops(program.body):
        found |= _LoopKeeper(loop, written, room).run()
    return found


def _loops(body: tuple[Item, ...]) -> Iterator[Loop]:
    for item in body:
        if isinstance(item, Loop):
            yield item
            yield from _loops(item.body)


def _ops(body: tuple[Item, ...]) -> Iterator[OpInst]:
    for item in body:
        yield from item.ops if isinstance(item, Stage) else _ops(item.body)


class _LoopKeeper:
    """Goes through a loop's stages in order and hands out the room.

    written: buffers that the program writes anywhere
    """

    def __init__(self, loop: Loop, written: frozenset[Buffer], room: int) -> None:
        self.loop, self.written, self.room = loop, written, room
        self.users: dict[Buffer, set[OpInst]] = {}
        self.written_here: set[Buffer] = set()
        for op in _ops(loop.body):
            self.written_here |= set(op.writes())
            for buffer in (*op.reads(), *op.writes()):
                self.users.setdefault(buffer, set()).add(op)

    def run(self) -> dict[OpInst, Kept]:
        found: dict[OpInst, Kept] = {}
        is_first_epoch = True
        for item in self.loop.body:
            if isinstance(item, Loop):
                is_first_epoch = False
                continue
            for op in item.ops:
                kept = self._of(op, is_first_epoch)
                if kept:
                    found[op] = kept
            is_first_epoch &= not item.barrier
        return found

    def _of(self, op: OpInst, is_first_epoch: bool) -> Kept:
        if self.loop.var.extent < 2 or not op.points or any(d.sequential for d in op.dims):
            return NOTHING
        loads = op.loads()
        states = tuple(self._states(op, loads)) if is_first_epoch else ()
        sizes = _Sizes(op)
        invariants = {
            i
            for i, load in sorted(enumerate(loads), key=lambda pair: sizes.bytes_of(pair[1]) or 0)
            if self._is_invariant(load, is_first_epoch) and self._takes(sizes.bytes_of(load))
        }
        return Kept(frozenset(invariants), states)

    def _takes(self, size: int | None) -> bool:
        """Whether there is room, which then is taken."""
        if size is None or size > self.room:
            return False
        self.room -= size
        return True

    def _is_invariant(self, load: Load, is_first_epoch: bool) -> bool:
        access = load.access
        return (
            not access.gathers
            and access.buffer not in self.written_here
            and not any(self.loop.var in index.variables() for index in access.affine)
            and (is_first_epoch or access.buffer not in self.written)
        )

    def _states(self, op: OpInst, loads: list[Load]) -> Iterator[tuple[int, frozenset[int]]]:
        for number, store in enumerate(op.stores):
            readers = [i for i, load in enumerate(loads) if load.access.buffer is store.access.buffer]
            if readers and self._is_private(op, store, [loads[i] for i in readers]):
                yield number, frozenset(readers)

    def _is_private(self, op: OpInst, store: Store, loads: list[Load]) -> bool:
        access = store.access
        return (
            store.accumulate is None
            and self.users[access.buffer] == {op}
            and sum(s.access.buffer is access.buffer for s in op.stores) == 1
            and all(load.fill is None and load.access.same_element(access) for load in loads)
            and not any(self.loop.var in index.variables() for index in access.affine)
            and is_injective(access.offset(), [d.var for d in op.dims])
        )


class _Sizes:
    """Registers' bytes of what the loads of an operator find in one block."""

    def __init__(self, op: OpInst) -> None:
        self.free = Analysis(op).free
        self.lanes = {d.var: _up(min(t, d.extent)) for d, t in zip(op.dims, op.tile, strict=True)}
        self.reduces = [e for e in op.expressions() if isinstance(e, Reduce)]

    def bytes_of(self, load: Load) -> int | None:
        """Bytes; None if the block never has all of it at once."""
        free = self.free[id(load)]
        around = [r for r in self.reduces if free & frozenset(r.over)]
        lanes = prod(n for var, n in self.lanes.items() if var in free)
        if len(around) > 1 or not all(map(self._is_whole, around)):
            return None
        return lanes * prod(_extent(r) for r in around) * load.dtype.bytes

    def products_of(self, load: Load) -> int:
        """Elements of a tile with the positions of the reduction around a load; 0 of one outside of all."""
        around = [r for r in self.reduces if self.free[id(load)] & frozenset(r.over)]
        return prod(self.lanes.values()) * prod(_extent(r) for r in around) if around else 0

    def _is_whole(self, reduce: Reduce) -> bool:
        wide = [n for n in self.lanes.values() if n > 1]
        if len(wide) == 2 and min(wide) >= SMALLEST_DOT:
            return _extent(reduce) <= WHOLE_DOT
        return prod(wide) * _extent(reduce) <= WHOLE


def _extent(reduce: Reduce) -> int:
    return _up(prod(v.extent for v in reduce.over))


def _up(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
