"""Vertical and sibling fusion of operator instances.

*Into the reader*: a producer joins an operator that reads, at every point, just what the producer computes
there. Its value is then used from a register; its store goes if nobody else reads it. A concat costs nothing
this way: the copy into the slice joins the producer.

*Into the rows that use it*: a reduction joins an operator that uses each of its results all along a row
(rows.py). Who else reads it keeps it where it is.

*Beside the sibling*: two operators of one level and one domain that read the same things become one: MatMuls
that share their left operand share one k-loop.

Joining must not delay work that was ready early: a heavy producer, or one with further readers, joins only a
reader that has nothing later to wait for. So the input projections of a recurrence stay outside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from wolong_fx.codegen.alignment import PointMap, find_point_map, is_bijective
from wolong_fx.codegen.dataflow import dependences, is_ordered, levels
from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.order_dims import find_lane
from wolong_fx.codegen.rewrite import rename_variables, rewrite_op, share_expressions, substitute_variables
from wolong_fx.codegen.rows import find_row_maps, is_cheap_to_copy, is_row_map
from wolong_fx.codegen.served_dims import serves_equally
from wolong_fx.ir.expr import Access, Expr, Load, Reduce, walk
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger

MAX_NODES = 400  # expression nodes of one operator: above this, registers spill and compile time grows
MAX_STORES = 48
MAX_REDUCES = 12  # each has accumulators; a longer sum of MatMuls goes on in the next operator
SEARCH_LIMIT = 200  # operators looked at to prove that joining makes no cycle


def fuse_ops(ops: list[Element], ledger: Ledger) -> list[Element]:
    """Fuse to a fixpoint; the result is in dependence order and computes the same values."""
    fuser = _Fuser([_prepared(op) for op in ops], ledger)
    fuser.join_readers()
    fuser.join_siblings()
    return fuser.result()


@dataclass
class _Fuser:
    """The operators still standing, and who reads and writes which buffer. Loops stand as they are."""

    ops: list[Element | None]
    ledger: Ledger
    readers: dict[Buffer, set[int]] = field(default_factory=lambda: defaultdict(set))
    writers: dict[Buffer, set[int]] = field(default_factory=lambda: defaultdict(set))
    level: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = dependences([op for op in self.ops if op])
        self.level = levels(self.before)
        self.after: list[set[int]] = [set() for _ in self.ops]
        for position, predecessors in enumerate(self.before):
            for p in predecessors:
                self.after[p].add(position)
        for position, op in enumerate(self.ops):
            self._register(position, op)

    def _register(self, position: int, op: Element | None) -> None:
        for buffer in op.reads() if op else ():
            self.readers[buffer].add(position)
        for buffer in op.writes() if op else ():
            self.writers[buffer].add(position)

    def _unregister(self, position: int) -> None:
        self._unregister_all(position, self.get(position))

    def _unregister_all(self, position: int, op: Element) -> None:
        for buffer in op.reads():
            self.readers[buffer].discard(position)
        for buffer in op.writes():
            self.writers[buffer].discard(position)

    def get(self, position: int) -> Element:
        op = self.ops[position]
        assert op is not None
        return op

    def _operator(self, position: int) -> OpInst:
        op = self.get(position)
        assert isinstance(op, OpInst)
        return op

    # ---- into the reader

    def join_readers(self) -> None:
        """Let every operator take in the producers it can, latest first."""
        for reader in range(len(self.ops)):
            self.level[reader] = self._earliest_level(reader)
            while self.ops[reader] is not None and self._take_one(reader):
                pass

    def _take_one(self, reader: int) -> bool:
        for producer in sorted(self.before[reader], key=lambda p: -self.level[p]):
            if not self._may_join(producer, reader):
                continue
            at_points = self._find_joined_at_points(producer, reader)
            joined = at_points or self._find_joined_by_rows(producer, reader)
            if joined is not None and self._makes_no_cycle(producer, reader):
                (self._join if at_points else self._join_rows)(producer, reader, joined)
                return True
        return False

    def _may_join(self, producer: int, reader: int) -> bool:
        """Whether joining delays nothing and makes nothing too big."""
        first, second = self.get(producer), self.get(reader)
        if not _can_host(first) or not _can_host(second) or _too_big(first, second):
            return False
        return self._is_ready_last(producer, reader) or not (
            is_heavy(first) or self._is_needed_elsewhere(producer, reader)
        )

    def _find_joined_at_points(self, producer: int, reader: int) -> OpInst | None:
        """Both in one, if each point of the reader reads what one of the producer's computes, or a row."""
        first, second = self._operator(producer), self._operator(reader)
        if any(len(self.writers[b]) != 1 for b in first.writes() if b in second.reads()):
            return None
        point_map, others = _find_common_map(first, second), dict[int, PointMap]()
        if point_map is None:
            point_map, others = find_row_maps(first, second) or (None, others)
        if point_map is None or not is_bijective(point_map, first, second):
            return None
        joined = _joined(first, second, point_map, others)
        return joined if _serves_alike(first, second, joined) else None

    def _find_joined_by_rows(self, producer: int, reader: int) -> OpInst | None:
        """The reader with what the producer computes for each of its rows, if it may do that, again too."""
        first, second = self._operator(producer), self._operator(reader)
        point_map = _find_common_map(first, second) if is_heavy(first) else None
        if point_map is None or not is_row_map(point_map, first, second):
            return None
        if self._is_needed_elsewhere(producer, reader) and not is_cheap_to_copy(first, second):
            return None
        joined = _joined(first, second, point_map)
        own = replace(joined, stores=joined.stores[len(first.stores) :])
        return own if _serves_alike(first, second, own) else None

    def _is_ready_last(self, producer: int, reader: int) -> bool:
        return all(self.level[p] <= self.level[producer] for p in self.before[reader])

    def _is_needed_elsewhere(self, producer: int, reader: int) -> bool:
        return any(self.readers[b] - {reader} for b in self.get(producer).writes())

    def _makes_no_cycle(self, producer: int, reader: int) -> bool:
        """No third operator needs the producer and is needed by the reader; the search is bounded."""
        floor = self.level[producer]
        stack = [p for p in self.before[reader] if p != producer and self.level[p] > floor]
        seen = set(stack)
        while stack:
            if len(seen) > SEARCH_LIMIT:
                return False
            for p in self.before[stack.pop()]:
                if p == producer:
                    return False
                if p not in seen and self.level[p] > floor:
                    seen.add(p)
                    stack.append(p)
        return True

    def _join(self, producer: int, reader: int, joined: OpInst) -> None:
        made_from, name = self._operator(producer).made_from, self._operator(reader).name
        self._unregister(producer)
        self._unregister(reader)
        self.ops[producer] = None
        self._register(reader, joined)
        kept = tuple(s for s in joined.stores if self._is_needed(s))
        self._unregister_all(reader, joined)
        self._replace(reader, share_expressions(replace(joined, stores=kept)))
        self._rewire(producer, reader)
        self.ledger.note("fuse-ops", ",".join(made_from), "fused", f"computed where {name} reads it")

    def _join_rows(self, producer: int, reader: int, joined: OpInst) -> None:
        first, name = self._operator(producer), self._operator(reader).name
        self._unregister(reader)
        self._replace(reader, share_expressions(joined))
        if any(map(self._is_needed, first.stores)):
            self._bypass(producer, reader)
        else:
            self._unregister(producer)
            self.ops[producer] = None
            self._rewire(producer, reader)
        self.ledger.note("fuse-ops", ",".join(first.made_from), "fused", f"computed for each row of {name}")

    def _is_needed(self, store: Store) -> bool:
        buffer = store.access.buffer
        return (
            buffer.kind in (BufferKind.OUTPUT, BufferKind.STATE)
            or bool(self.readers[buffer])
            or len(self.writers[buffer]) > 1
        )

    def _replace(self, position: int, op: OpInst) -> None:
        self.ops[position] = op
        self._register(position, op)

    def _rewire(self, gone: int, into: int) -> None:
        """All that followed or preceded `gone` now does so of `into`; levels rise where they must."""
        self.before[into] = (self.before[into] | self.before[gone]) - {gone, into}
        for p in self.before[gone]:
            self.after[p].discard(gone)
            self.after[p].add(into)
        for n in self.after[gone] - {into}:
            self.before[n].discard(gone)
            self.before[n].add(into)
            self.after[into].add(n)
        self.after[into].discard(into)
        self.before[gone], self.after[gone] = set(), set()
        self.level[into] = self._earliest_level(into)
        self._raise_levels(into)

    def _bypass(self, producer: int, reader: int) -> None:
        """The reader waits for what the producer waits for, no longer for the producer itself."""
        self.after[producer].discard(reader)
        self.before[reader] = (self.before[reader] | self.before[producer]) - {producer}
        for p in self.before[producer]:
            self.after[p].add(reader)
        self.level[reader] = self._earliest_level(reader)

    def _earliest_level(self, position: int) -> int:
        return 1 + max((self.level[p] for p in self.before[position]), default=-1)

    def _raise_levels(self, start: int) -> None:
        stack = [start]
        while stack:
            position = stack.pop()
            for n in self.after[position]:
                if self.level[n] <= self.level[position]:
                    self.level[n] = self.level[position] + 1
                    stack.append(n)

    # ---- beside the sibling

    def join_siblings(self) -> None:
        """Join operators of one level and domain that share a matrix operand or an input."""
        self._settle_levels()
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for position, op in enumerate(self.ops):
            if _can_host(op):
                for key in _shared_operands(op):
                    groups[(self.level[position], op.domain, *key)].append(position)
        for members in groups.values():
            self._join_group([m for m in members if self.ops[m] is not None])

    def _join_group(self, members: list[int]) -> None:
        if not members:
            return
        into, *others = members
        for other in others:
            first, second = self._operator(into), self._operator(other)
            joined = replace(
                first, stores=first.stores + second.stores, made_from=first.made_from + second.made_from
            )
            is_apart = self.level[into] != self.level[other] or not serves_equally(joined)
            if is_apart or _too_big(first, second):
                into = other
                continue
            self._unregister(into)
            self._unregister(other)
            self.ops[other] = None
            self._replace(into, share_expressions(joined))
            self._rewire(other, into)
            self.ledger.note(
                "fuse-ops", ",".join(second.made_from), "fused", f"shares an operand with {first.name}"
            )

    def _settle_levels(self) -> None:
        """Levels from scratch: joining may have shortened paths."""
        order = self._order()
        for position in order:
            self.level[position] = self._earliest_level(position)

    def _order(self) -> list[int]:
        alive = [p for p, op in enumerate(self.ops) if op is not None]
        return sorted(alive, key=lambda p: (self.level[p], p))

    def result(self) -> list[Element]:
        return [self.get(p) for p in self._order()]


def is_heavy(op: OpInst) -> bool:
    """Whether an operator does more than constant work a point."""
    return any(isinstance(e, Reduce) for e in op.expressions())


def _prepared(op: Element) -> Element:
    return share_expressions(rename_variables(op)) if isinstance(op, OpInst) else op


def _can_host(op: Element | None) -> TypeGuard[OpInst]:
    """Only plain stores over parallel dimensions are fused."""
    if not isinstance(op, OpInst):
        return False
    return not any(d.sequential for d in op.dims) and not any(is_ordered(s) for s in op.stores)


def _too_big(first: OpInst, second: OpInst) -> bool:
    stores = len(first.stores) + len(second.stores)
    nodes = len(first.expressions()) + len(second.expressions())
    return stores > MAX_STORES or nodes > MAX_NODES or _reduces(first) + _reduces(second) > MAX_REDUCES


def _reduces(op: OpInst) -> int:
    return sum(isinstance(e, Reduce) for e in op.expressions())


def _serves_alike(first: OpInst, second: OpInst, joined: OpInst) -> bool:
    """Whether the reductions of both keep to one loop nest."""
    return serves_equally(joined) or not (is_heavy(first) and is_heavy(second))


def _find_common_map(first: OpInst, second: OpInst) -> PointMap | None:
    """One map under which every read of what `first` writes is at the point that writes it."""
    stores = {s.access.buffer: s.access for s in first.stores}
    found: PointMap | None = None
    bound = {v for e in second.expressions() if isinstance(e, Reduce) for v in e.over}
    for load in second.loads():
        stored = stores.get(load.access.buffer)
        if stored is None:
            continue
        if load.fill is not None or any(bound & i.variables() for i in load.access.affine):
            return None
        point_map = find_point_map(first, stored, load.access)
        if point_map is None or (found is not None and found != point_map):
            return None
        found = point_map
    return found


def _joined(
    first: OpInst, second: OpInst, point_map: PointMap, others: Mapping[int, PointMap] | None = None
) -> OpInst:
    """Both operators' stores, `first`'s values taking the place of `second`'s loads of them.

    others: for loads (by id) that are not of the point's own element, where that is
    """
    own = substitute_variables(first, point_map, second.dims)
    values = {s.access.buffer: s.value for s in own.stores}
    elsewhere = {key: substitute_variables(first, m, second.dims) for key, m in (others or {}).items()}

    def change(node: Expr) -> Expr | None:
        if not isinstance(node, Load):
            return None
        if id(node) in elsewhere:
            there = elsewhere[id(node)].stores
            return next(s.value for s in there if s.access.buffer is node.access.buffer)
        return values.get(node.access.buffer)

    reading = rewrite_op(second, change=change)
    made_from = (*first.made_from, *second.made_from)
    return replace(second, stores=own.stores + reading.stores, made_from=made_from)


def _shared_operands(op: OpInst) -> list[tuple[object, ...]]:
    """Keys under which siblings are found: the operand of a reduction that lanes share, with its depth.

    Lanes may run along the last dimension, or along the one that `order_dims` is going to put last: the
    channels of a convolution.
    """
    keys: dict[tuple[object, ...], None] = {}
    lanes = {op.dims[-1].var, find_lane(op).var} if op.dims else set[Var]()
    for node in op.expressions():
        if isinstance(node, Reduce):
            for load in walk(node.args):
                if isinstance(load, Load) and (not lanes or _is_shared_by_some(lanes, load.access)):
                    depth = tuple(v.extent for v in node.over)
                    keys["left", depth, id(load.access.buffer), _shape_of(load.access, node)] = None
    return list(keys)


def _is_shared_by_some(lanes: Collection[Var], access: Access) -> bool:
    """Whether there is a choice of lanes that all read the same element."""
    return any(all(lane not in i.variables() for i in access.affine) for lane in lanes)


def _shape_of(access: Access, reduce: Reduce) -> tuple[str, ...]:
    """An access as text in which the reduction's variables have neutral names."""
    neutral = {v: Var(f"k.{i}", v.extent) for i, v in enumerate(reduce.over)}
    return tuple(str(i.substitute(neutral)) for i in access.affine)
