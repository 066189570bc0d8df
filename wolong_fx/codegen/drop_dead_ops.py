"""Operators nobody reads: what a lowering computed beside what was asked (a mean beside a variance) goes
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from wolong_fx.codegen.loops import Element, LoopInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger

_CALLERS = (BufferKind.OUTPUT, BufferKind.STATE)


def drop_dead_ops(ops: list[Element], ledger: Ledger) -> list[Element]:
    """The operators whose results reach an output, in loops too."""
    alive = _alive(ops, set())
    standing = set(_names(alive))
    for name in dict.fromkeys(_names(ops)):
        if name not in standing:
            ledger.note("drop-dead-ops", name, "removed", "nothing reads its result")
    return alive


def _alive(ops: Iterable[Element], wanted: set[Buffer]) -> list[Element]:
    """What computes an output or a wanted buffer; `wanted` grows by what that reads."""
    alive: list[Element] = []
    for op in reversed(list(ops)):
        kept = _alive_loop(op, wanted) if isinstance(op, LoopInst) else op
        if kept and any(b in wanted or b.kind in _CALLERS for b in kept.writes()):
            wanted.update(kept.reads())
            alive.append(kept)
    return alive[::-1]


def _alive_loop(loop: LoopInst, wanted: set[Buffer]) -> LoopInst | None:
    """What is wanted of a loop; a carried value is, if it is so after the loop or in some trip."""
    inside = set(wanted)
    while True:
        known = len(inside)
        body = _alive(loop.body, inside)
        inside.update(c.new for c in loop.carries if c.old in inside)
        if len(inside) == known:
            break
    carries = tuple(c for c in loop.carries if c.new in inside)
    return replace(loop, body=tuple(body), carries=carries) if body else None


def _names(ops: Iterable[Element]) -> Iterable[str]:
    for op in ops:
        yield ",".join(op.made_from)
        if isinstance(op, LoopInst):
            yield from _names(op.body)
