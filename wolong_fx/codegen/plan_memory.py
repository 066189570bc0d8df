"""One arena for all temporaries: live ranges by stage, results written over operands that die, largest first.

Greedy by size (as TensorFlow Lite's planner, Pisarchyk and Lee 2020): place the largest tensor first, each at
the lowest offset where it overlaps nobody alive at the same time. On the graphs met here it is within a few
per cent of the largest sum of sizes alive at once, which no plan can beat.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter

from wolong_fx.ir.expr import Load
from wolong_fx.ir.live_ranges import LiveRange, live_ranges
from wolong_fx.ir.program import ArenaPlan, OpInst, Program, Store
from wolong_fx.ir.types import Buffer

HEADER = 4096
"""Bytes at the start of every arena that belong to the thread team's barrier."""

ALIGNMENT = 64


def plan_memory(program: Program) -> Program:
    """The program with an arena plan for its temporaries."""
    ranges = live_ranges(program)
    groups = _share_in_place(program, ranges)
    order = sorted(groups, key=lambda g: (-_size(g[0]), ranges[g[0]].first))
    offsets: dict[Buffer, int] = {}
    placed: list[tuple[int, int, LiveRange]] = []
    for group in order:
        span = ranges[group[0]]
        for other in group[1:]:
            span = span.joined(ranges[other])
        size = max(map(_size, group))
        offset = _lowest_gap(size, span, placed)
        insort(placed, (offset, offset + size, span), key=itemgetter(0))
        offsets.update(dict.fromkeys(group, offset))
    total = max((end for _, end, _ in placed), default=HEADER)
    return replace(program, arena=ArenaPlan(offsets, total))


def _size(buffer: Buffer) -> int:
    return -(-buffer.span_bytes // ALIGNMENT) * ALIGNMENT


def _lowest_gap(size: int, span: LiveRange, placed: list[tuple[int, int, LiveRange]]) -> int:
    offset = HEADER
    for start, end, other in placed:
        if not span.overlaps(other):
            continue
        if start - offset >= size:
            break
        offset = max(offset, end)
    return offset


# ---- results written over operands


def _share_in_place(program: Program, ranges: Mapping[Buffer, LiveRange]) -> list[list[Buffer]]:
    """Groups of temporaries at one address: a result may take the place of an operand that dies with it."""
    head: dict[Buffer, Buffer] = {b: b for b in ranges}
    stores = Counter(store.access.buffer for op in program.ops() for store in op.stores)
    for position, stage in enumerate(program.stages()):
        readers = Counter(b for op in stage.ops for b in op.reads())
        for op in stage.ops:
            for target, dying in _pairs(op, position, ranges):
                alone = readers[dying] == 1 and stores[target] == 1
                if alone and head[target] is target:
                    head[target] = head[dying]
    groups: dict[Buffer, list[Buffer]] = defaultdict(list)
    for buffer, first in head.items():
        groups[first].append(buffer)
    return list(groups.values())


def _pairs(op: OpInst, position: int, ranges: Mapping[Buffer, LiveRange]) -> Iterator[tuple[Buffer, Buffer]]:
    """(result, dying operand) of one operator that may share memory: every read is of the element being
    written.
    """
    taken: set[Buffer] = set()
    exact = {b for b in (*op.reads(), *op.writes()) if b in ranges and not ranges[b].is_stretched}
    for store in op.stores:
        target = store.access.buffer
        if target not in exact or store.accumulate or ranges[target].first != position:
            continue
        dying = (b for b in op.reads() if b in exact - taken and ranges[b].last == position)
        for buffer in (b for b in dying if _may_replace(op, store, b)):
            taken.add(buffer)
            yield target, buffer
            break


def _may_replace(op: OpInst, store: Store, operand: Buffer) -> bool:
    target = store.access.buffer
    geometry = (target.dtype, target.shape, target.strides)
    if target is operand or (operand.dtype, operand.shape, operand.strides) != geometry:
        return False
    loads = [load for load in op.loads() if load.access.buffer is operand]
    return all(_reads_what_it_writes(load, store.access.index) for load in loads)


def _reads_what_it_writes(load: Load, index: tuple[object, ...]) -> bool:
    return load.fill is None and not load.access.gathers and load.access.index == index
