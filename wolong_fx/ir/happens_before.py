"""Barrier correctness on planned byte ranges: no two virtual blocks of one epoch touch the same bytes, one
writing.

What a kernel promises (and nothing else is used): a barrier orders everything before it against everything
after it; one virtual block of one operator is run by one thread, the same in every trip of a loop, in the
order of the trips; and one thread runs, in program order, all virtual blocks that are alone in their stage.
An *epoch* is what lies between two barriers of the running program. Two accesses of an epoch are ordered only
if the same virtual block of the same operator makes them, or two that are alone; so a program is free of
races if and only if, in every epoch, no two accesses of other pairs of virtual blocks overlap in bytes with
one of them a write. That is what is checked here.

Every pair is looked at. The program is walked in order with the accesses of the open epoch at hand
(`_Epoch`), each operator being compared with those before it, and with itself. A loop whose body holds a
barrier is walked four times: as the first trip (after what precedes the loop), as trip t and then trip t + 1
for *all* t at once (arrays), and as the last trip (before what follows). An epoch cannot span more than two
of its trips, so no pair is missed. A loop without a barrier lies inside one epoch; its variable then takes
all its values independently on both sides.

Safe, not exact: a pair is reported unless one of these proves it apart, each a sufficient condition.
1. Different memory: buffers of the caller are apart from everything else, the arena's by their byte ranges.
2. Boxes: the intervals of some coordinate are apart (footprint.py), at each trip. Two buffers in one place
   with one geometry count as one buffer, here and below.
3. Residues: some coordinate differs modulo the divisor of all its factors (even and odd columns).
4. Two blocks of *one* operator differ in some dimension g of its grid. Either the same index stands on both
   sides in some coordinate and its factor of g outweighs all its other terms, for every such g; or the whole
   flat offset is the same on both sides and injective.
5. Boxes (or hulls in bytes) block by block.
6. The bytes themselves, enumerated, where they are few.

With an `owner` (which thread runs which block, in every trip), the kernel promises more: one thread runs
all blocks that it owns in the order of their stages (those of one stage have no conflict anyway). Pairs of
blocks with one owner are then ordered as well: 5 and 6 are tried for pairs of operators too, with blocks of
one owner left out. Nothing else of the owner is used, so a barrier that goes is not needed however the blocks
of *different* owners run beside each other; and a smaller team, whose threads take over all blocks of several
owners, keeps the promise.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from wolong_fx.errors import RaceFound
from wolong_fx.ir.footprint import (
    Interval,
    Touch,
    boxes_are_apart,
    is_injective,
    residues_are_apart,
    separates,
    touches_of,
)
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import ArenaPlan, Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind

Owner = Callable[[OpInst, int], int]
"""Thread that runs a virtual block (by row-major number) of an operator, in every trip and launch."""

Trips = Mapping[Var, Interval]
"""Loop variables where an operator runs: (t, t), with arrays for many trips at once, or (0, last) for any
trip.
"""

ENUMERATED = 1 << 20
"""Points up to which element sets are enumerated to prove a program free of races."""

ENUMERATED_FOR_REMOVAL = 1 << 12
"""The same when the price of not proving it is only a barrier that stays."""

BLOCKS = 1 << 12
"""Virtual blocks up to which an operator is looked at block by block."""


@dataclass(frozen=True)
class Race:
    """Two accesses that nothing orders."""

    program: str
    first: str
    second: str
    buffer: str

    def error(self) -> RaceFound:
        return RaceFound(program=self.program, first=self.first, second=self.second, buffer=self.buffer)


def find_races(program: Program, owner: Owner | None = None) -> list[Race]:
    """Every pair of operators of one epoch that may touch the same bytes, one writing, on different virtual
    blocks.
    """
    check = _Check(program, owner, ENUMERATED)
    check.walk(program.body, {}, _Epoch(check))
    return list(dict.fromkeys(check.races))


def check_races(program: Program, owner: Owner | None = None) -> None:
    """Raise RaceFound for the first race of a program."""
    for race in find_races(program, owner):
        raise race.error()


def remove_redundant_barriers(program: Program, owner: Owner | None = None) -> Program:
    """The program without the barriers that order nothing: those whose two sides, up to the next barrier that
    stays, have no conflict. `program` must be free of races. The one behind the last stage always goes: the
    kernel ends.
    """
    return _Removal(program, owner).run()


@dataclass(frozen=True, eq=False)
class _Place:
    """Memory of a touch, equal for buffers that lie in the same bytes with the same geometry.

    start, end: bytes in the arena; None for memory outside of it
    """

    key: object
    start: int | None
    end: int


@dataclass(frozen=True, eq=False)
class _Seen:
    """A touch at some trips of the loops around it."""

    touch: Touch
    place: _Place
    trips: Trips
    box: tuple[Interval, ...]

    @property
    def is_scalar(self) -> bool:
        return all(isinstance(low, int) and isinstance(high, int) for low, high in self.box)

    @cached_property
    def bytes(self) -> Interval:
        """First and last byte touched; relative to the arena for buffers in it."""
        low, high = self.touch.hull(self.trips)
        width = self.touch.buffer.dtype.bytes
        return (self.place.start or 0) + low * width, (self.place.start or 0) + high * width + width - 1


class _Check:
    """The walk over a program: what is known of its operators, and the races found."""

    def __init__(self, program: Program, owner: Owner | None, enumerated: int) -> None:
        self.program = program
        self.owner = owner
        self.enumerated = enumerated
        self.races: list[Race] = []
        self.wants_all = True
        self.touches: dict[OpInst, list[Touch]] = {}
        lone = map(find_lone_operator, program.stages() if owner is None else ())
        self.alone = frozenset(filter(None, lone))
        self.places = {b: _place(b, program.arena) for b in program.buffers}
        self._owners: dict[OpInst, np.ndarray] = {}

    def owners(self, seen: _Seen) -> np.ndarray:
        """The thread of each virtual block, or its number where no owner is known: equal ones are ordered."""
        op, owner = seen.touch.op, self.owner
        if op not in self._owners:
            blocks = range(_blocks(op))
            self._owners[op] = np.array([owner(op, n) for n in blocks] if owner else blocks, dtype=np.int64)
        return self._owners[op]

    def walk(self, body: Iterable[Item], trips: Trips, epoch: _Epoch) -> _Epoch:
        """Check the items in order from an open epoch; the epoch that is open at the end."""
        for item in body:
            if self.races and not self.wants_all:
                return epoch
            if isinstance(item, Loop):
                epoch = self._walk_loop(item, trips, epoch)
                continue
            for op in item.ops:
                epoch.add(op, trips)
            if item.barrier:
                epoch = _Epoch(self)
        return epoch

    def _walk_loop(self, loop: Loop, trips: Trips, epoch: _Epoch) -> _Epoch:
        last = loop.var.extent - 1
        if last < 0:
            return epoch
        if not _has_barrier(loop):
            return self.walk(loop.body, {**trips, loop.var: (0, last)}, epoch)
        epoch = self.walk(loop.body, {**trips, loop.var: (0, 0)}, epoch)
        if last == 0:
            return epoch
        every = np.arange(last).reshape([last] + [1] * len(trips))
        between = self.walk(loop.body, {**trips, loop.var: (every, every)}, _Epoch(self))
        self.walk(loop.body, {**trips, loop.var: (every + 1, every + 1)}, between)
        return self.walk(loop.body, {**trips, loop.var: (last, last)}, _Epoch(self))

    def touches_of(self, op: OpInst) -> list[Touch]:
        """Touches of memory that can be written: an input or a constant is in nobody's way."""
        if op not in self.touches:
            shared = (BufferKind.TEMPORARY, BufferKind.OUTPUT, BufferKind.STATE)
            self.touches[op] = [t for t in touches_of(op) if t.buffer.kind in shared and t.buffer.elements]
        return self.touches[op]

    def report(self, a: Touch, b: Touch) -> None:
        self.races.append(Race(self.program.name, str(a), str(b), b.buffer.name))


class _Epoch:
    """Everything touched since the last barrier, by place and by bytes."""

    def __init__(self, check: _Check) -> None:
        self.check = check
        self.seen: dict[object, list[_Seen]] = {}
        self.written: dict[object, list[_Seen]] = {}
        self.boxes: dict[object, _Boxes] = {}
        self.in_arena: list[tuple[int, int, int]] = []
        self.by_start: dict[tuple[int, int, int], object] = {}
        self.longest = 0

    def add(self, op: OpInst, trips: Trips) -> None:
        """Compare an operator with itself and with the epoch so far, then make it part of the epoch."""
        check, new = self.check, []
        for touch in check.touches_of(op):
            here = {v: trips[v] for v in touch.variables if v in trips}
            new.append(_Seen(touch, check.places[touch.buffer], here, touch.box(here)))
        for conflict in self._conflicts_within(op, new):
            check.report(*conflict)
        for seen in new:
            for other in self._candidates(seen):
                if self._conflict(other, seen):
                    check.report(other.touch, seen.touch)
        for seen in new:
            self._insert(seen)

    def _conflicts_within(self, op: OpInst, new: list[_Seen]) -> Iterator[tuple[Touch, Touch]]:
        """Pairs of one operator whose different blocks meet, in one trip (or in any, in a loop without
        barriers).
        """
        if _blocks(op) <= 1:
            return
        for n, a in enumerate(new):
            for b in new[n:] if a.touch.writes else (s for s in new[n:] if s.touch.writes):
                if _may_meet(a, b) and not _blocks_are_apart(a, b, self.check):
                    yield a.touch, b.touch

    def _conflict(self, a: _Seen, b: _Seen) -> bool:
        if a.touch.op is b.touch.op:
            return _blocks(a.touch.op) > 1 and not _blocks_are_apart(a, b, self.check)
        if {a.touch.op, b.touch.op} <= self.check.alone:
            return False
        return not _operators_are_apart(a, b, self.check)

    def _candidates(self, new: _Seen) -> Iterator[_Seen]:
        """Touches of the epoch that may meet `new`, one of the two a write."""
        key = new.place.key
        if key in self.boxes and self.boxes[key].is_worth_it and new.is_scalar:
            near = self.boxes[key].near(new.box)
            yield from (s for s in near if s.touch.writes or new.touch.writes)
        else:
            earlier = (self.seen if new.touch.writes else self.written).get(key, ())
            yield from (s for s in earlier if not boxes_are_apart(s.box, new.box))
        if new.place.start is not None:
            yield from self._overlapping(new, new.place.start, new.place.end)

    def _overlapping(self, new: _Seen, start: int, end: int) -> Iterator[_Seen]:
        """Touches of other buffers that share bytes of the arena with the buffer of `new`."""
        first = bisect_left(self.in_arena, (start - self.longest, 0, 0))
        for entry in self.in_arena[first:]:
            if entry[0] >= end:
                return
            key = self.by_start[entry]
            if entry[1] > start and key != new.place.key:
                earlier = (self.seen if new.touch.writes else self.written).get(key, ())
                yield from (s for s in earlier if _may_meet(s, new))

    def copy(self) -> _Epoch:
        """An epoch with the same touches, to try something in."""
        copied = _Epoch(self.check)
        for seen in (s for some in self.seen.values() for s in some):
            copied._insert(seen)
        return copied

    def _insert(self, seen: _Seen) -> None:
        key, place = seen.place.key, seen.place
        if key not in self.seen:
            self.seen[key], self.written[key], self.boxes[key] = [], [], _Boxes()
            if place.start is not None:
                entry = (place.start, place.end, len(self.by_start))
                self.by_start[entry] = key
                self.longest = max(self.longest, place.end - place.start)
                insort(self.in_arena, entry)
        self.seen[key].append(seen)
        if seen.touch.writes:
            self.written[key].append(seen)
        self.boxes[key].add(seen)


class _Boxes:
    """Boxes of one place as arrays: a buffer with thousands of writers (a concat) takes little time."""

    def __init__(self) -> None:
        self.scalars: list[_Seen] = []
        self.others: list[_Seen] = []
        self.bounds = np.empty((0, 0, 2), dtype=np.int64)

    @property
    def is_worth_it(self) -> bool:
        return len(self.scalars) > 16

    def add(self, seen: _Seen) -> None:
        if not seen.is_scalar:
            self.others.append(seen)
            return
        used = len(self.scalars)
        if used == len(self.bounds):
            grown = np.empty((max(2 * used, 8), len(seen.box), 2), dtype=np.int64)
            grown[:used] = self.bounds.reshape(used, len(seen.box), 2)
            self.bounds = grown
        self.bounds[used] = np.array(seen.box, dtype=np.int64).reshape(-1, 2)
        self.scalars.append(seen)

    def near(self, box: tuple[Interval, ...]) -> Iterator[_Seen]:
        """Entries whose box is not apart from a scalar one."""
        mine = np.array(box, dtype=np.int64).reshape(-1, 2)
        known = self.bounds[: len(self.scalars)]
        meets = ((known[:, :, 1] >= mine[:, 0]) & (known[:, :, 0] <= mine[:, 1])).all(axis=1)
        yield from (self.scalars[n] for n in np.flatnonzero(meets))
        yield from (s for s in self.others if not boxes_are_apart(s.box, box))


# ---- proofs that two touches are apart


def _may_meet(a: _Seen, b: _Seen) -> bool:
    """Whether boxes (of one place) or byte hulls (of two that overlap) meet at some trip."""
    if a.place.key == b.place.key:
        return not boxes_are_apart(a.box, b.box)
    if a.place.start is None or b.place.start is None:
        return False
    return not boxes_are_apart([a.bytes], [b.bytes])


def _operators_are_apart(a: _Seen, b: _Seen, check: _Check) -> bool:
    """Whether no block of one operator meets a block of another, given that `_may_meet`."""
    if a.place.key == b.place.key and residues_are_apart(a.touch.access, b.touch.access):
        return True
    if check.owner is None:
        return _sets_are_apart(a, b, lambda s: np.full(_blocks(s.touch.op), s is a), check.enumerated)
    return _block_boxes_are_apart(a, b, check.owners) or _sets_are_apart(a, b, check.owners, check.enumerated)


def _blocks_are_apart(a: _Seen, b: _Seen, check: _Check) -> bool:
    """Whether no two *different* blocks of one operator meet through these touches, at any two trips of
    theirs.
    """
    if not _may_meet(a, b):
        return True
    if a.place.key == b.place.key and _is_told_by_index(a.touch, b.touch):
        return True
    return _block_boxes_are_apart(a, b, check.owners) or _sets_are_apart(a, b, check.owners, check.enumerated)


def _is_told_by_index(a: Touch, b: Touch) -> bool:
    """Whether meeting needs the same values of every variable that the grid is cut along (proofs 3 and 4)."""
    if residues_are_apart(a.access, b.access):
        return True
    pairs = zip(a.access.index, b.access.index, a.buffer.strides, strict=True)
    same = [x for x, y, stride in pairs if stride and isinstance(x, Index) and x == y]
    cut = [d.var for d, blocks in zip(a.op.dims, _grid(a.op), strict=True) if blocks > 1]
    if all(any(separates(index, var) for index in same) for var in cut):
        return True
    return len(same) == sum(s != 0 for s in a.buffer.strides) and is_injective(a.access.offset(), cut)


Labels = Callable[[_Seen], np.ndarray]
"""A label for each virtual block of a touch's operator; blocks with equal labels are ordered."""


def _block_boxes_are_apart(a: _Seen, b: _Seen, labels: Labels) -> bool:
    """Whether blocks with different labels have boxes (or byte hulls) that are apart; trips are taken
    together.
    """
    if max(_blocks(a.touch.op), _blocks(b.touch.op)) > BLOCKS:
        return False
    meets = labels(a)[:, None] != labels(b)[None, :]
    if not meets.any():
        return True
    by_coordinate = a.place.key == b.place.key
    pairs = zip(_block_boxes(a, by_coordinate), _block_boxes(b, by_coordinate), strict=True)
    for (low_a, high_a), (low_b, high_b) in pairs:
        meets &= (high_a[:, None] >= low_b) & (low_a[:, None] <= high_b)
        if not meets.any():
            return True
    return False


def _block_boxes(seen: _Seen, by_coordinate: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Intervals for each virtual block: of every coordinate, or of bytes."""
    op, shape, grid = seen.touch.op, (_blocks(seen.touch.op),), _grid(seen.touch.op)
    by_block: dict[Var, Interval] = {
        v: (int(np.min(first)), int(np.max(last))) for v, (first, last) in seen.trips.items()
    }
    corners = np.unravel_index(np.arange(_blocks(op)), grid) if grid else ()
    for dim, tile, corner in zip(op.dims, op.tile or op.domain, corners, strict=True):
        by_block[dim.var] = corner * tile, np.minimum(corner * tile + tile, dim.extent) - 1
    local = _Seen(seen.touch, seen.place, by_block, ())
    boxes = seen.touch.box(by_block) if by_coordinate else (local.bytes,)
    return [(np.broadcast_to(low, shape), np.broadcast_to(high, shape)) for low, high in boxes]


def _sets_are_apart(a: _Seen, b: _Seen, labels: Labels, limit: int) -> bool:
    """Whether no byte is touched by blocks with different labels, by looking at every byte; False if too
    many.
    """
    if max(_points(a), _points(b)) > limit:
        return False
    (bytes_a, blocks_a), (bytes_b, blocks_b) = _bytes_touched(a), _bytes_touched(b)
    if not bytes_a.size or not bytes_b.size:
        return True
    label_a, label_b, first = labels(a)[blocks_a], labels(b)[blocks_b], bytes_a.min()
    nobody, several = -1, -2
    toucher = np.full(bytes_a.max() - first + 1, nobody)
    toucher[bytes_a - first] = label_a
    toucher[(bytes_a - first)[toucher[bytes_a - first] != label_a]] = several
    inside = (bytes_b >= first) & (bytes_b < first + toucher.size)
    met = toucher[bytes_b[inside] - first]
    return bool(((met == nobody) | (met == label_b[inside])).all())


def _points(seen: _Seen) -> float:
    """How many points `_bytes_touched` would enumerate; infinite when the elements are not known."""
    known = all(isinstance(low, int) and low == high for low, high in seen.trips.values())
    if not known or seen.touch.access.gathers:
        return float("inf")
    inner = seen.touch.variables - {d.var for d in seen.touch.op.dims} - seen.trips.keys()
    return seen.touch.op.points * prod(v.extent for v in inner) * seen.touch.buffer.dtype.bytes


def _bytes_touched(seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Every byte touched with the number of the block that does, one entry a point."""
    touch, op = seen.touch, seen.touch.op
    dims = [d.var for d in op.dims]
    variables = [*dims, *sorted(touch.variables - set(dims) - seen.trips.keys())]
    shape = tuple(v.extent for v in variables)
    at: dict[Var, Any] = (
        dict(zip(variables, np.ogrid[tuple(slice(n) for n in shape)], strict=True)) if shape else {}
    )
    block: Any = 0
    for var, tile, blocks in zip(dims, op.tile or op.domain, _grid(op), strict=True):
        block = block * blocks + at[var] // tile
    at.update({v: low for v, (low, _) in seen.trips.items()})
    coordinates = [np.asarray(i.evaluate(at)) for i in touch.access.affine]
    inside = np.ones(shape, dtype=bool)
    for position, extent in zip(coordinates, touch.buffer.shape, strict=True):
        inside &= (position >= 0) & (position < extent)
    pairs = zip(coordinates, touch.buffer.strides, strict=True)
    offset = sum((position * stride for position, stride in pairs), np.asarray(0))
    width = touch.buffer.dtype.bytes
    start = np.broadcast_to(offset, shape)[inside] * width + (seen.place.start or 0)
    every = (start[:, None] + np.arange(width)).reshape(-1)
    return every, np.repeat(np.broadcast_to(block, shape)[inside], width)


def _place(buffer: Buffer, arena: ArenaPlan | None) -> _Place:
    if buffer.kind is not BufferKind.TEMPORARY or arena is None or buffer not in arena.offsets:
        return _Place(buffer, None, 0)
    start = arena.offsets[buffer]
    geometry = (start, buffer.dtype.bytes, buffer.shape, buffer.strides)
    return _Place(geometry, start, start + buffer.span_bytes)


def _grid(op: OpInst) -> tuple[int, ...]:
    return op.grid if op.tile else (1,) * len(op.dims)


def _blocks(op: OpInst) -> int:
    return prod(_grid(op))


def _has_barrier(item: Item) -> bool:
    """Whether running the item meets a barrier."""
    if isinstance(item, Stage):
        return item.barrier
    return item.var.extent > 0 and any(_has_barrier(inner) for inner in item.body)


def find_lone_operator(stage: Stage) -> OpInst | None:
    """The operator of the one virtual block of a stage that has no more than one."""
    busy = [op for op in stage.ops if _blocks(op)]
    return busy[0] if len(busy) == 1 and _blocks(busy[0]) == 1 else None


# ---- removal


class _Removal:
    """One walk over the outermost items; barriers are dropped as they prove useless, the earliest first.

    open: what was touched since the last barrier that stays, the one behind the last item done being still in
        doubt
    """

    def __init__(self, program: Program, owner: Owner | None) -> None:
        self.program = program
        self.check = _Check(program, owner, ENUMERATED_FOR_REMOVAL)
        self.open = _Epoch(self.check)
        self.done: list[Item] = []

    def run(self) -> Program:
        """The program without its redundant barriers."""
        body = self.program.body
        for position, item in enumerate(body):
            if isinstance(item, Stage):
                self._take_stage(item)
            else:
                self._take_loop(item, _until_barrier(body[position + 1 :]))
        if self._is_in_doubt():
            self._drop_last_barrier()
        return replace(self.program, body=tuple(self.done))

    def _take_stage(self, stage: Stage) -> None:
        body: list[Item] = [replace(stage, barrier=False)]
        if not self._is_in_doubt():
            self._extend(body, self.open)
        elif self._is_free(body, self.open):
            self._drop_last_barrier()
        else:
            self._extend(body, _Epoch(self.check))
        self.done.append(stage)

    def _take_loop(self, loop: Loop, following: list[Item]) -> None:
        if self._is_in_doubt():
            if self._is_free([loop], self.open.copy()):
                self._drop_last_barrier()
            else:
                self.open = _Epoch(self.check)
        dropped: set[Stage] = set()
        for stage in (s for s in _stages_of(loop) if s.barrier):
            thinner = _without_barriers(loop, dropped | {stage})
            if self._is_free([thinner, *following], self.open.copy()):
                dropped.add(stage)
        self.done.append(_without_barriers(loop, dropped))
        self._extend([self.done[-1]], self.open)

    def _is_free(self, body: list[Item], epoch: _Epoch) -> bool:
        """Whether running `body` in an open epoch makes no race; the epoch is of no use afterwards if it
        does.
        """
        self.check.races.clear()
        self.check.wants_all = False
        self.check.walk(body, {}, epoch)
        return not self.check.races

    def _extend(self, body: list[Item], epoch: _Epoch) -> None:
        """Let `body` run in an open epoch, which is known to be right even where it was not proved."""
        self.check.wants_all = True
        self.open = self.check.walk(body, {}, epoch)

    def _is_in_doubt(self) -> bool:
        return bool(self.done) and isinstance(self.done[-1], Stage) and self.done[-1].barrier

    def _drop_last_barrier(self) -> None:
        last = self.done[-1]
        assert isinstance(last, Stage)
        self.done[-1] = replace(last, barrier=False)


def _until_barrier(items: Iterable[Item]) -> list[Item]:
    """The items up to the first that has a barrier, that one included."""
    taken: list[Item] = []
    for item in items:
        taken.append(item)
        if _has_barrier(item):
            break
    return taken


def _stages_of(item: Item) -> Iterator[Stage]:
    if isinstance(item, Stage):
        yield item
    else:
        for inner in item.body:
            yield from _stages_of(inner)


def _without_barriers(item: Item, dropped: set[Stage]) -> Any:
    """The item with the barriers of these stages dropped."""
    if isinstance(item, Stage):
        return replace(item, barrier=False) if item in dropped else item
    return replace(item, body=tuple(_without_barriers(inner, dropped) for inner in item.body))
