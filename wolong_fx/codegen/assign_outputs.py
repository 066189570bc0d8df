"""Results are computed where the caller reads them: a copy into an output disappears into the operator that
fills it.
"""

from __future__ import annotations

from wolong_fx.codegen.rewrite import relocate_buffers
from wolong_fx.ir.expr import Load
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger


def assign_outputs(ops: list[OpInst], ledger: Ledger) -> list[OpInst]:
    """Give each temporary that is only copied whole into an output of its layout that output's memory."""
    home: dict[Buffer, Buffer] = {}
    kept = []
    for op in ops:
        pair = _copied_whole(op)
        if pair is None or pair[0] in home:
            kept.append(op)
            continue
        home[pair[0]] = pair[1]
        ledger.note(
            "assign-outputs", ",".join(op.made_from), "removed", f"{pair[0]} is computed in {pair[1]} itself"
        )
    moved = {temporary: (output, ()) for temporary, output in home.items()}
    return [relocate_buffers(op, moved) for op in kept]


def _copied_whole(op: OpInst) -> tuple[Buffer, Buffer] | None:
    """(temporary, output) if the operator does nothing but copy one into the other, element by element."""
    store = op.stores[0]
    target, value = store.access.buffer, store.value
    if len(op.stores) != 1 or target.kind is not BufferKind.OUTPUT or not isinstance(value, Load):
        return None
    source = value.access.buffer
    if source.kind is not BufferKind.TEMPORARY or value.fill is not None or value.access.gathers:
        return None
    same_layout = (source.dtype, source.shape, source.strides) == (target.dtype, target.shape, target.strides)
    same_element = value.access.index == store.access.index
    return (source, target) if same_layout and same_element else None
