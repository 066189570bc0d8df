"""What depends on weights alone moves to a program of its own, `prepare`; the other reads its results.

Prepare runs once, and again when a weight changed (`runtime.ResidentKernel` watches them). Two programs, not
one with two entries: a value that crosses is an output of the one and an input of the other, so that the
verifier, the check for races and the reference machine know all they need already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from wolong_fx.codegen.loops import Element, LoopInst, map_ops
from wolong_fx.codegen.rewrite import relocate_buffers
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer, BufferKind

KEPT_SHARE = 1.25
"""Bytes that one `take` may keep for each byte of weights: a copy of each, with room for ragged panels."""

MOST_KEPT = 256 << 20
"""Bytes that one kernel keeps at most: larger models are short of memory before they are short of time."""


@dataclass(frozen=True)
class Preparation:
    """The prepare part.

    ops: in an order that respects their data
    inputs: the weights that it reads; outputs: what it computes, in the order of `residents`
    residents: the same values as inputs of the run part
    """

    ops: list[OpInst]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    residents: tuple[Buffer, ...]


@dataclass
class PrepareSplitter:
    """What depends on weights alone leaves the run part, between whatever steps one likes; `finish` has it.

    static: inputs that are parameters or buffers of the model
    """

    static: frozenset[Buffer]
    _twins: dict[Buffer, Buffer] = field(default_factory=dict)
    _sources: dict[Buffer, frozenset[Buffer]] = field(default_factory=dict)
    _ops: list[OpInst] = field(default_factory=list)
    _kept_bytes: int = 0

    def __post_init__(self) -> None:
        self._sources |= {b: frozenset([b]) for b in self.static}

    @property
    def readable(self) -> frozenset[Buffer]:
        """Inputs of the run part that stay the same between calls: weights, and what was taken so far."""
        return self.static | frozenset(self._twins.values())

    @property
    def room(self) -> int:
        """Bytes that the next `take` may keep."""
        return self._most_kept()

    def take(self, elements: Sequence[Element]) -> list[Element]:
        """The elements without those that only compute what is kept; they read it as inputs instead."""
        self._kept_bytes = 0  # what was taken before is mostly packed now, and then not read itself
        pure = _find_pure(elements, self.readable)
        self._trace_sources(pure)
        makers = _makers(pure)
        kept, again = self._choose(elements, pure, makers)
        self._ops += _closure(pure, kept, makers)
        self._twins |= {b: replace(b, kind=BufferKind.INPUT) for b in kept}
        self._sources |= {self._twins[b]: self._sources[b] for b in kept}
        gone = set(map(id, pure)) - set(map(id, again))
        rest = [e for e in elements if id(e) not in gone]
        moved = {b: (self._twins[b], ()) for b in kept}
        return map_ops(rest, lambda op: relocate_buffers(op, moved)) if moved else list(elements)

    def finish(self, elements: Sequence[Element]) -> Preparation | None:
        """The prepare part of what these elements, the run part, still read; None if that is nothing."""
        read = {b for e in elements for b in e.reads()}
        kept = [b for b, twin in self._twins.items() if twin in read]
        if not kept:
            return None
        outputs = {b: replace(b, kind=BufferKind.OUTPUT) for b in kept}
        inside = {b: (outputs.get(b, b), ()) for b in self._twins}
        inside |= {twin: inside[b] for b, twin in self._twins.items()}
        needed = _closure(self._ops, kept, _makers(self._ops), {t: b for b, t in self._twins.items()})
        ops = [relocate_buffers(op, inside) for op in needed]
        inputs = dict.fromkeys(b for op in ops for b in op.reads() if b in self.static)
        return Preparation(
            ops, tuple(inputs), tuple(outputs.values()), tuple(self._twins[b] for b in outputs)
        )

    def _most_kept(self) -> int:
        return min(MOST_KEPT, int(KEPT_SHARE * sum(b.span_bytes for b in self.static)))

    def _trace_sources(self, pure: Iterable[OpInst]) -> None:
        """Note which weights every value of the prepare part is made of."""
        for op in pure:
            sources = frozenset[Buffer]().union(*(self._sources.get(b, frozenset()) for b in op.reads()))
            for buffer in op.writes():
                self._sources[buffer] = self._sources.get(buffer, frozenset()) | sources

    def _choose(
        self, elements: Sequence[Element], pure: Sequence[OpInst], makers: Mapping[Buffer, list[OpInst]]
    ) -> tuple[list[Buffer], list[OpInst]]:
        """Values to keep of those that the run part reads; the operators that compute the others there."""
        inside, kept, again = set(map(id, pure)), dict[Buffer, None](), dict[int, OpInst]()
        carried = {b for e in elements if isinstance(e, LoopInst) for b in _carried(e)}
        pending = [b for e in elements if id(e) not in inside for b in e.reads()]
        while pending:
            buffer = pending.pop()
            if buffer in kept or buffer not in makers or all(id(op) in again for op in makers[buffer]):
                continue
            if buffer not in carried and self._is_worth_keeping(buffer):
                kept[buffer] = None
                self._kept_bytes += buffer.span_bytes
            else:
                again |= {id(op): op for op in makers[buffer]}
                pending += [b for op in makers[buffer] for b in op.reads()]
        return list(kept), list(again.values())

    def _is_worth_keeping(self, buffer: Buffer) -> bool:
        """Whether it is made of weights, and reading it is no dearer than reading them; within the bounds."""
        sources = sum(b.span_bytes for b in self._sources[buffer])
        return 0 < buffer.span_bytes <= min(KEPT_SHARE * sources, self._most_kept() - self._kept_bytes)


def _find_pure(elements: Sequence[Element], static: frozenset[Buffer]) -> list[OpInst]:
    """Operators outside of loops, of weights and constants alone, into memory that no other writes."""
    impure: set[Buffer] = set()
    while True:
        known, pure = len(impure), list[OpInst]()
        for element in elements:
            if isinstance(element, OpInst) and _is_pure(element, static, impure):
                pure.append(element)
            else:
                impure.update(element.writes())
        if len(impure) == known:
            return pure


def _is_pure(op: OpInst, static: frozenset[Buffer], impure: set[Buffer]) -> bool:
    def is_known(buffer: Buffer) -> bool:
        return buffer in static or buffer.kind in (BufferKind.CONSTANT, BufferKind.TEMPORARY)

    touched = (*op.reads(), *op.writes())
    into_memory = all(b.kind is BufferKind.TEMPORARY for b in op.writes())
    return into_memory and all(map(is_known, op.reads())) and not any(b in impure for b in touched)


def _makers(ops: Iterable[OpInst]) -> dict[Buffer, list[OpInst]]:
    makers: dict[Buffer, list[OpInst]] = defaultdict(list)
    for op in ops:
        for buffer in op.writes():
            makers[buffer].append(op)
    return dict(makers)


def _closure(
    ops: Sequence[OpInst],
    wanted: Iterable[Buffer],
    makers: Mapping[Buffer, list[OpInst]],
    original: Mapping[Buffer, Buffer] | None = None,
) -> list[OpInst]:
    """The operators that `wanted` needs, in order; `original` of an input is the value that it stands for."""
    needed: set[int] = set()
    pending = list(wanted)
    while pending:
        buffer = pending.pop()
        for op in makers.get((original or {}).get(buffer, buffer), ()):
            if id(op) not in needed:
                needed.add(id(op))
                pending += op.reads()
    return [op for op in ops if id(op) in needed]


def _carried(loop: LoopInst) -> Iterable[Buffer]:
    """Buffers of a loop's carries and of those of loops in it: their memory is the loop's own."""
    for carry in loop.carries:
        yield from (carry.old, carry.new)
    for element in loop.body:
        if isinstance(element, LoopInst):
            yield from _carried(element)
