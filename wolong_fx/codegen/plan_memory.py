"""One arena for all temporaries: live ranges by stage, results written over operands that die, largest first.

Greedy by size (as TensorFlow Lite's planner, Pisarchyk and Lee 2020): place the largest tensor first, each at
the lowest offset where it overlaps nobody alive at the same time. On the graphs met here it is within a few
per cent of the largest sum of sizes alive at once, which no plan can beat.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter

from wolong_fx.ir.expr import Load
from wolong_fx.ir.program import ArenaPlan, Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind

HEADER = 4096
"""Bytes at the start of every arena that belong to the thread team's barrier."""

ALIGNMENT = 64


@dataclass(frozen=True)
class LiveRange:
    """First and last stage, both included, in which a buffer must keep its bytes."""

    first: int
    last: int

    def overlaps(self, other: LiveRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    def joined(self, other: LiveRange) -> LiveRange:
        return LiveRange(min(self.first, other.first), max(self.last, other.last))


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


def live_ranges(program: Program) -> dict[Buffer, LiveRange]:
    """Live range of every temporary; one touched inside a loop lives as long as the loop."""
    found: dict[Buffer, LiveRange] = {}
    _visit(program.body, 0, found)
    return found


def _visit(body: tuple[Item, ...], start: int, found: dict[Buffer, LiveRange]) -> int:
    for item in body:
        if isinstance(item, Loop):
            inside: dict[Buffer, LiveRange] = {}
            end = _visit(item.body, start, inside)
            _merge(found, dict.fromkeys(inside, LiveRange(start, end - 1)))
            start = end
        else:
            _merge(found, dict.fromkeys(_temporaries(item), LiveRange(start, start)))
            start += 1
    return start


def _merge(found: dict[Buffer, LiveRange], more: Mapping[Buffer, LiveRange]) -> None:
    for buffer, span in more.items():
        found[buffer] = found[buffer].joined(span) if buffer in found else span


def _temporaries(stage: Stage) -> list[Buffer]:
    touched = [b for op in stage.ops for b in (*op.reads(), *op.writes())]
    return [b for b in touched if b.kind is BufferKind.TEMPORARY]


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
    stores = _store_counts(program)
    for position, stage in enumerate(s for s in program.body if isinstance(s, Stage)):
        reading = _reader_counts(stage)
        for op in stage.ops:
            for target, dying in _pairs(op, position, program, ranges):
                alone = reading[dying] == 1 and stores[target] == 1
                if alone and head[target] is target:
                    head[target] = head[dying]
    groups: dict[Buffer, list[Buffer]] = defaultdict(list)
    for buffer, first in head.items():
        groups[first].append(buffer)
    return list(groups.values())


def _pairs(
    op: OpInst, position: int, program: Program, ranges: Mapping[Buffer, LiveRange]
) -> list[tuple[Buffer, Buffer]]:
    """(result, dying operand) of one operator that may share memory: every read is of the element being
    written.
    """
    if any(isinstance(item, Loop) for item in program.body):
        return []
    taken: set[Buffer] = set()
    found = []
    for store in op.stores:
        target = store.access.buffer
        if target.kind is not BufferKind.TEMPORARY or store.accumulate or ranges[target].first != position:
            continue
        for buffer in op.reads():
            if buffer in taken or buffer.kind is not BufferKind.TEMPORARY or ranges[buffer].last != position:
                continue
            same_layout = (buffer.dtype, buffer.shape, buffer.strides) == (
                target.dtype,
                target.shape,
                target.strides,
            )
            loads = [load for load in op.loads() if load.access.buffer is buffer]
            if same_layout and all(_reads_what_it_writes(load, store.access.index) for load in loads):
                taken.add(buffer)
                found.append((target, buffer))
                break
    return found


def _reads_what_it_writes(load: Load, index: tuple[object, ...]) -> bool:
    return load.fill is None and not load.access.gathers and load.access.index == index


def _store_counts(program: Program) -> dict[Buffer, int]:
    counts: dict[Buffer, int] = defaultdict(int)
    for op in program.ops():
        for store in op.stores:
            counts[store.access.buffer] += 1
    return counts


def _reader_counts(stage: Stage) -> dict[Buffer, int]:
    counts: dict[Buffer, int] = defaultdict(int)
    for op in stage.ops:
        for buffer in op.reads():
            counts[buffer] += 1
    return counts
