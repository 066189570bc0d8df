"""What makes a program valid: a table of rules, run after every step that makes or changes one.

A rule is a name and a function from what is known of a program to descriptions of what breaks it. The
verifier proves what it asks for (bounds, independence) by intervals; a program that is right but cannot be
proved is not valid. Whether blocks of one epoch race is another question: see happens_before.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from wolong_fx.errors import InvalidProgram
from wolong_fx.ir.coverage import Coverage
from wolong_fx.ir.expr import (
    ARITHMETIC,
    COMPARISON,
    REDUCTION,
    UNARY,
    Access,
    Binary,
    Cast,
    Const,
    Expr,
    IndexValue,
    Load,
    Reduce,
    Unary,
    Where,
    walk,
)
from wolong_fx.ir.footprint import Ranges, Touch, boxes_are_apart, residues_are_apart, touches_of
from wolong_fx.ir.index import Index, Var, contiguous_strides
from wolong_fx.ir.live_ranges import live_ranges
from wolong_fx.ir.program import Item, Loop, OpInst, Program
from wolong_fx.ir.text import print_op
from wolong_fx.ir.types import Buffer, BufferKind, DType

ALIGNMENT = 64
"""Every temporary starts at a multiple of this."""

HEADER_BYTES = 4096
"""Head of the arena that belongs to the barrier."""

ENUMERATED = 1 << 16
"""Points up to which an index is evaluated everywhere when its interval is too wide."""

TRIPS = 1 << 20
"""Trips of nested loops that are looked at one by one; more are taken together."""


def verify(program: Program, after: str) -> None:
    """Raise InvalidProgram, naming the step `after` which it was found, if the program breaks a rule."""
    facts = _Facts(program)
    for rule, check in RULES:
        for culprit in check(facts):
            raise InvalidProgram(step=after, rule=rule, culprit=culprit)


class _Facts:
    """A program with what several rules ask for."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stages: list[list[_OpFacts]] = []
        self.loops: list[Var] = []
        self._enter(program.body, ())

    def _enter(self, body: Iterable[Item], loops: tuple[Var, ...]) -> None:
        for item in body:
            if isinstance(item, Loop):
                self.loops.append(item.var)
                self._enter(item.body, (*loops, item.var))
            else:
                self.stages.append([_OpFacts(op, loops) for op in item.ops])

    @property
    def ops(self) -> Iterator[_OpFacts]:
        for stage in self.stages:
            yield from stage

    @cached_property
    def buffers(self) -> frozenset[Buffer]:
        return frozenset(self.program.buffers)


@dataclass(frozen=True, eq=False)
class _OpFacts:
    """An operator and the loops around it."""

    op: OpInst
    loops: tuple[Var, ...]

    @cached_property
    def nodes(self) -> list[Expr]:
        return list(self.op.expressions())

    @cached_property
    def reductions(self) -> list[Reduce]:
        return [n for n in self.nodes if isinstance(n, Reduce)]

    @cached_property
    def touches(self) -> list[Touch]:
        return touches_of(self.op, self.nodes)

    @cached_property
    def trips(self) -> Ranges:
        """Every trip of the loops around, each loop along an axis of its own."""
        if prod(v.extent for v in self.loops) > TRIPS:
            return {}
        every = {v: np.arange(v.extent).reshape([-1] + [1] * n) for n, v in enumerate(self.loops)}
        return {v: (trip, trip) for v, trip in every.items()}

    def box(self, touch: Touch) -> Any:
        """The box of a touch at every trip."""
        return touch.box({v: r for v, r in self.trips.items() if v in touch.variables})

    def says(self, what: object) -> str:
        """A diagnostic: the message beside the operator."""
        return f"{what}, here:\n{print_op(self.op)}\n"


# ---- rules on buffers


def _names_are_unique(facts: _Facts) -> Iterator[str]:
    counts = Counter(b.name for b in facts.program.buffers)
    yield from (f"{n} buffers named {name!r}" for name, n in counts.items() if n > 1)


def _buffers_are_sound(facts: _Facts) -> Iterator[str]:
    for buffer in facts.program.buffers:
        wrong = _wrong_with_buffer(buffer)
        if wrong:
            yield f"buffer {buffer.name!r}: {wrong}"


def _wrong_with_buffer(buffer: Buffer) -> str | None:
    if len(buffer.strides) != len(buffer.shape) or min((*buffer.strides, *buffer.shape), default=0) < 0:
        return f"shape {list(buffer.shape)} with strides {list(buffer.strides)}"
    if (buffer.data is not None) != (buffer.kind is BufferKind.CONSTANT):
        return "constants have bytes, others have none"
    if buffer.data is not None:
        is_dense = buffer.strides == contiguous_strides(buffer.shape)
        is_full = len(buffer.data) == buffer.elements * buffer.dtype.bytes
        return None if is_dense and is_full else "a constant's bytes are row-major and complete"
    if buffer.kind is not BufferKind.INPUT and not _elements_are_apart(buffer):
        return f"strides {list(buffer.strides)} put several elements of {list(buffer.shape)} in one place"
    return None


def _elements_are_apart(buffer: Buffer) -> bool:
    """Whether no two elements share memory, but for an output's along dimensions of stride 0 (an expanded
    one).
    """
    reach = 0
    for stride, extent in sorted((s, n) for s, n in zip(buffer.strides, buffer.shape, strict=True) if n > 1):
        if stride == 0 and buffer.kind is BufferKind.OUTPUT:
            continue
        if stride <= reach:
            return False
        reach += stride * (extent - 1)
    return True


def _outputs_are_written(facts: _Facts) -> Iterator[str]:
    written = Coverage()
    for touch in (t for known in facts.ops for t in known.touches if t.writes):
        written.add(touch)
    for buffer in facts.program.buffers:
        if buffer.kind is BufferKind.OUTPUT and written.missing(buffer):
            yield f"output {buffer.name!r}: {written.missing(buffer)} elements that nobody stores"


# ---- rules on one operator


def _each(check: Callable[[_OpFacts], Iterator[str]]) -> Callable[[_Facts], Iterator[str]]:
    """The rule that every operator passes `check`."""

    def rule(facts: _Facts) -> Iterator[str]:
        for known in facts.ops:
            for culprit in check(known):
                yield known.says(culprit)

    return rule


def _buffers_are_declared(facts: _Facts) -> Iterator[str]:
    for known in facts.ops:
        for touch in known.touches:
            if touch.buffer not in facts.buffers:
                yield known.says(f"{touch}, which the program does not declare")


def _ranks_agree(known: _OpFacts) -> Iterator[str]:
    for touch in known.touches:
        if len(touch.access.index) != len(touch.buffer.shape):
            yield f"{len(touch.access.index)} coordinates in the {touch} of rank {len(touch.buffer.shape)}"


def _tiles_fit(known: _OpFacts) -> Iterator[str]:
    op = known.op
    if op.tile and len(op.tile) != len(op.dims):
        yield f"tile {op.tile} for {len(op.dims)} dimensions"
    elif min(op.tile, default=1) < 1 and op.points:
        yield f"tile {op.tile}"
    else:
        for dim, tile in zip(op.dims, op.tile, strict=False):
            if dim.sequential and tile < dim.extent:
                yield f"sequential dimension {dim.var} cut into tiles of {tile}"


def _variables_are_in_scope(known: _OpFacts) -> Iterator[str]:
    """An index variable is a dimension, a loop around, or of a Reduce whose body it stands in."""
    outer = [*(d.var for d in known.op.dims), *known.loops, *(v for r in known.reductions for v in r.over)]
    again = [name for name, n in Counter(v.name for v in outer).items() if n > 1]
    if again:
        yield f"variable {again[0]!r} of two dimensions, reductions or loops"
    free = _free_variables(known)
    for var in sorted(free - {d.var for d in known.op.dims} - set(known.loops)):
        yield f"variable {var} used where it has no value"


def _free_variables(known: _OpFacts) -> frozenset[Var]:
    """Variables that the stores need from outside of all reductions."""
    free: dict[int, frozenset[Var]] = {}
    for node in known.nodes:
        own = frozenset[Var]()
        if isinstance(node, Load):
            own = own.union(*(i.variables() for i in node.access.affine))
        elif isinstance(node, IndexValue):
            own = node.index.variables()
        own = own.union(*(free[id(a)] for a in node.args))
        free[id(node)] = own.difference(node.over) if isinstance(node, Reduce) else own
    stores = known.op.stores
    roots = [free[id(s.value)] for s in stores] + [
        free[id(g.value)] for s in stores for g in s.access.gathers
    ]
    return frozenset[Var]().union(*roots, *(i.variables() for s in stores for i in s.access.affine))


def _types_agree(known: _OpFacts) -> Iterator[str]:
    for node in known.nodes:
        if not _TYPES[type(node)](node):
            operands = ", ".join(str(a.dtype) for a in node.args)
            yield f"{_spelled(node)} of ({operands})"
    for store in known.op.stores:
        if store.value.dtype is not store.access.buffer.dtype:
            holds = store.access.buffer.dtype
            yield f"a {store.value.dtype} stored to {store.access.buffer.name!r}, which holds {holds}"
        if store.accumulate not in (None, "add", "mul", "max", "min"):
            yield f"store {store.accumulate!r}"
        if not all(g.value.dtype.is_integer for g in store.access.gathers):
            yield f"store to {store.access.buffer.name!r} at a position that is no integer"


def _spelled(node: Expr) -> str:
    return str(getattr(node, "op", type(node).__name__.lower()))


_ANY_UNARY = frozenset("neg abs sign floor ceil round trunc".split())
_INTEGER_BINARY = frozenset("and or xor shl shr".split())
_FLOAT_BINARY = frozenset("div atan2 hypot".split())


def _is_unary_typed(node: Any) -> bool:
    dtype = node.x.dtype
    if node.op == "not":
        return dtype is DType.BOOL
    if node.op == "bitnot":
        return dtype.is_integer
    return node.op in UNARY and (dtype.is_float or (node.op in _ANY_UNARY and dtype.is_integer))


def _is_binary_typed(node: Any) -> bool:
    if node.a.dtype is not node.b.dtype or node.op not in ARITHMETIC | COMPARISON:
        return False
    if node.op in _FLOAT_BINARY:
        return node.a.dtype.is_float
    return node.op not in _INTEGER_BINARY or not node.a.dtype.is_float


def _is_reduce_typed(node: Any) -> bool:
    if node.op in ("any", "all"):
        return node.body.dtype is DType.BOOL
    return node.op in REDUCTION


def _is_constant_typed(node: Any) -> bool:
    if node.kind is DType.BOOL:
        return isinstance(node.value, bool)
    return node.kind.is_float or (isinstance(node.value, int) and not isinstance(node.value, bool))


_TYPES: dict[type[Expr], Callable[[Any], bool]] = {
    Load: lambda node: all(g.value.dtype.is_integer for g in node.access.gathers),
    Const: _is_constant_typed,
    IndexValue: lambda node: True,
    Cast: lambda node: True,
    Unary: _is_unary_typed,
    Binary: _is_binary_typed,
    Where: lambda node: node.cond.dtype is DType.BOOL and node.a.dtype is node.b.dtype,
    Reduce: _is_reduce_typed,
}
"""Whether a node's operands have the types it takes."""


def _accesses_are_in_bounds(known: _OpFacts) -> Iterator[str]:
    for touch in known.touches:
        if touch.filled or any(not v.extent for v in touch.variables):
            continue
        for dim, (index, extent) in enumerate(zip(touch.access.index, touch.buffer.shape, strict=True)):
            if isinstance(index, Index) and not _is_within(index, extent):
                low, high = index.bounds()
                yield f"{touch}: coordinate {dim} is {index}, from {low} to {high}, of {extent}"


def _is_within(index: Index, extent: int) -> bool:
    low, high = index.bounds()
    if low >= 0 and high < extent:
        return True
    variables = sorted(index.variables())
    if not variables or prod(v.extent for v in variables) > ENUMERATED:
        return False
    points = np.ogrid[tuple(slice(v.extent) for v in variables)]
    values = index.evaluate(dict(zip(variables, points, strict=True)))
    return int(np.min(values)) >= 0 and int(np.max(values)) < extent


def _only_own_memory_is_written(known: _OpFacts) -> Iterator[str]:
    for store in known.op.stores:
        if store.access.buffer.kind in (BufferKind.INPUT, BufferKind.CONSTANT):
            yield f"store to {store.access.buffer.kind.value} {store.access.buffer.name!r}"


def _own_loads_are_of_the_stored_element(known: _OpFacts) -> Iterator[str]:
    """Without a sequential dimension, a point reads of the buffers it writes only what it replaces itself."""
    if any(d.sequential for d in known.op.dims):
        return
    stored = {t.buffer for t in known.touches if t.writes}
    for load in (t for t in known.touches if not t.writes and t.buffer in stored):
        for store in (t for t in known.touches if t.writes and t.buffer is load.buffer):
            if not load.access.same_element(store.access) and not _are_apart(known, load, known, store):
                yield f"{load} of another element than the one it stores"


def _stores_are_injective(known: _OpFacts) -> Iterator[str]:
    """Two parallel points never store to one element: every dimension counts, and elements suffice."""
    standing = dict.fromkeys((*known.loops, *(d.var for d in known.op.dims if d.sequential)), (0, 0))
    for touch in (t for t in known.touches if t.writes):
        parallel = {d.var for d in known.op.dims if not d.sequential and d.extent > 1}
        lost = parallel - touch.variables - _gathered_variables(touch.access)
        if lost:
            yield f"{touch} from all {min(lost)} alike"
        points = prod(v.extent for v in parallel - _gathered_variables(touch.access))
        if _affine_reach(touch, standing) < points:
            yield f"{touch} of {points} points to {_affine_reach(touch, standing)} elements"


def _affine_reach(store: Touch, standing: Ranges) -> int:
    """How many elements a store reaches at most while gathers and the `standing` variables stand still."""
    ends = [store.interval(d, standing) for d, i in enumerate(store.access.index) if isinstance(i, Index)]
    return prod(int(high) - int(low) + 1 for low, high in ends)


def _gathered_variables(access: Access) -> set[Var]:
    """Variables that the gathered positions of an access depend on."""
    found: set[Var] = set()
    for node in walk([g.value for g in access.gathers]):
        if isinstance(node, Load):
            found |= {v for i in node.access.affine for v in i.variables()}
        elif isinstance(node, IndexValue):
            found |= node.index.variables()
    return found


# ---- rules on several operators


def _siblings_are_independent(facts: _Facts) -> Iterator[str]:
    """Operators of one stage touch nothing that another of them writes."""
    for stage in facts.stages:
        by_buffer: dict[Buffer, list[tuple[_OpFacts, Touch]]] = {}
        for known in stage if len(stage) > 1 else ():
            for touch in known.touches:
                by_buffer.setdefault(touch.buffer, []).append((known, touch))
        for touches in by_buffer.values():
            yield from _dependent_touches(touches)


def _dependent_touches(touches: list[tuple[_OpFacts, Touch]]) -> Iterator[str]:
    """Pairs of one buffer's touches that may meet, one of them a store."""
    if not any(touch.writes for _, touch in touches) or len({known.op for known, _ in touches}) < 2:
        return
    for known, touch, other, store in _near_pairs(touches):
        if (
            known is not other
            and (touch.writes or store.writes)
            and not _are_apart(known, touch, other, store)
        ):
            yield known.says(f"{touch} beside the {store}")


def _near_pairs(
    touches: list[tuple[_OpFacts, Touch]],
) -> Iterator[tuple[_OpFacts, Touch, _OpFacts, Touch]]:
    """Pairs whose intervals meet in the dimension where the fewest do, so that few are compared."""
    boxes = [[_whole(i) for i in touch.box({})] for _, touch in touches]
    sweeps = [_sweep([box[d] for box in boxes]) for d in range(len(boxes[0]))]
    pairs = min(sweeps, key=len) if sweeps else _sweep([(0, 0)] * len(boxes))
    for a, b in pairs:
        yield (*touches[a], *touches[b])


def _whole(ends: tuple[Any, Any]) -> tuple[int, int]:
    return int(np.min(ends[0])), int(np.max(ends[1]))


def _sweep(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of positions whose intervals meet."""
    pairs: list[tuple[int, int]] = []
    open_now: list[int] = []
    for n in sorted(range(len(intervals)), key=lambda n: intervals[n][0]):
        open_now = [m for m in open_now if intervals[m][1] >= intervals[n][0]]
        pairs += [(m, n) for m in open_now]
        open_now.append(n)
    return pairs


def _are_apart(a: _OpFacts, x: Touch, b: _OpFacts, y: Touch) -> bool:
    """Whether two touches of one buffer, made in one trip, never meet."""
    return residues_are_apart(x.access, y.access) or boxes_are_apart(a.box(x), b.box(y))


def _reads_follow_writes(facts: _Facts) -> Iterator[str]:
    """No element of a temporary or output is read before an earlier stage (or the scan itself) may have
    written it.
    """
    written = Coverage()
    for stage in facts.stages:
        for known in stage:
            for touch in known.touches:
                if _relies_on_writes(known, touch) and not written.has(touch, known.loops):
                    yield known.says(f"{touch} before it was written")
        for touch in (t for known in stage for t in known.touches if t.writes):
            written.add(touch)


def _relies_on_writes(known: _OpFacts, touch: Touch) -> bool:
    """Whether a touch reads what the program itself must have written in an earlier stage."""
    if touch.buffer.kind not in (BufferKind.TEMPORARY, BufferKind.OUTPUT) or not touch.buffer.elements:
        return False
    own = [s for s in known.op.stores if s.access.buffer is touch.buffer]
    if touch.writes:
        return any(s.access is touch.access and s.accumulate for s in own)
    is_scan = any(d.sequential for d in known.op.dims) and any(not s.accumulate for s in own)
    return not is_scan


# ---- rules on the arena


def _arena_holds_all_temporaries(facts: _Facts) -> Iterator[str]:
    plan = facts.program.arena
    for buffer in facts.program.buffers if plan else ():
        if plan and buffer.kind is BufferKind.TEMPORARY:
            start = plan.offsets.get(buffer)
            if start is None:
                yield f"temporary {buffer.name!r} has no place in the arena"
            elif start % ALIGNMENT or start < HEADER_BYTES or start + buffer.span_bytes > plan.size:
                end = start + buffer.span_bytes
                yield f"temporary {buffer.name!r} at bytes {start} to {end} of an arena of {plan.size}"


def _living_buffers_are_apart(facts: _Facts) -> Iterator[str]:
    """Temporaries alive at one time share no byte, but for a result that replaces its operand in place."""
    plan = facts.program.arena
    if plan is None:
        return
    alive: list[Buffer] = []
    lives = live_ranges(facts.program)
    for buffer in sorted(lives, key=lambda b: lives[b].first):
        born = lives[buffer].first
        alive = [b for b in alive if lives[b].last >= born]
        start, end = plan.offsets[buffer], plan.offsets[buffer] + buffer.span_bytes
        for other in alive:
            if plan.offsets[other] < end and start < plan.offsets[other] + other.span_bytes:
                is_exact = not (lives[other].is_stretched or lives[buffer].is_stretched)
                is_heir = is_exact and lives[other].last == born and plan.offsets[other] == start
                if not (is_heir and _is_replaced(other, buffer, facts.stages[born])):
                    yield f"temporaries {other.name!r} and {buffer.name!r}, alive together in the same bytes"
        alive.append(buffer)


def _is_replaced(old: Buffer, new: Buffer, stage: list[_OpFacts]) -> bool:
    """Whether each operator that touches `old` in this stage reads it just where it writes `new`."""
    if (old.dtype.bytes, old.shape, old.strides) != (new.dtype.bytes, new.shape, new.strides):
        return False
    for known in stage:
        loads = [t.access for t in known.touches if t.buffer is old]
        stores = [t.access for t in known.touches if t.buffer is new]
        if any(load.index != store.index or load.gathers for load in loads for store in stores):
            return False
        if loads and not stores:
            return False
    return True


Rule = Callable[[_Facts], Iterator[str]]

RULES: tuple[tuple[str, Rule], ...] = (
    ("buffer names are unique", _names_are_unique),
    ("buffers are sound", _buffers_are_sound),
    ("buffers are declared", _buffers_are_declared),
    ("ranks agree", _each(_ranks_agree)),
    ("tiles fit", _each(_tiles_fit)),
    ("variables are in scope", _each(_variables_are_in_scope)),
    ("types agree", _each(_types_agree)),
    ("accesses are in bounds", _each(_accesses_are_in_bounds)),
    ("only own memory is written", _each(_only_own_memory_is_written)),
    ("own loads are of the stored element", _each(_own_loads_are_of_the_stored_element)),
    ("stores are injective", _each(_stores_are_injective)),
    ("operators of a stage are independent", _siblings_are_independent),
    ("reads follow writes", _reads_follow_writes),
    ("outputs are written", _outputs_are_written),
    ("the arena holds all temporaries", _arena_holds_all_temporaries),
    ("living buffers are apart", _living_buffers_are_apart),
)
"""The rules in the order they are checked; later ones rely on earlier ones."""
