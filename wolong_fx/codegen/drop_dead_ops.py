"""Operators nobody reads: what a lowering computed beside what was asked (a mean beside a variance) goes
here.
"""

from __future__ import annotations

from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger


def drop_dead_ops(ops: list[OpInst], ledger: Ledger) -> list[OpInst]:
    """The operators whose results reach an output."""
    wanted: set[Buffer] = set()
    alive: list[OpInst] = []
    for op in reversed(ops):
        if any(b in wanted or b.kind is BufferKind.OUTPUT for b in op.writes()):
            wanted.update(op.reads())
            alive.append(op)
        else:
            ledger.note("drop-dead-ops", ",".join(op.made_from), "removed", "nothing reads its result")
    return alive[::-1]
