"""Memory that operators touch, and loops whose trips touch more of it than a core's cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from wolong_fx.codegen.signature import accesses, inner_variables
from wolong_fx.ir.program import Item, Loop, OpInst, Stage
from wolong_fx.ir.types import Buffer

ROOM = 0.75
"""Part of a cache that a loop can count on to keep: its lines are not chosen perfectly."""


def outgrows(loop: Loop, threads: int, cache_bytes: float) -> bool:
    """Whether a thread's share of what one trip touches does not stay in a cache until the next trip."""
    return touched_bytes(ops_in(loop.body)) > ROOM * cache_bytes * threads


def touched_bytes(ops: Iterable[OpInst]) -> int:
    """Bytes of the elements that operators load and store, those of a buffer at most once.

    Of what depends on the variable of a loop around them: as many as one trip touches.
    """
    touched: dict[Buffer, int] = {}
    for op in ops:
        for buffer, elements in _touched_elements(op).items():
            touched[buffer] = min(max(touched.get(buffer, 0), elements), buffer.elements)
    return sum(elements * buffer.dtype.bytes for buffer, elements in touched.items())


def _touched_elements(op: OpInst) -> dict[Buffer, int]:
    inner, found = inner_variables(op), dict[Buffer, int]()
    different = {(a.buffer, a.index): a for a in accesses(op)}
    for access in different.values():
        variables = {v for i in access.affine for v in i.variables()} & inner
        found[access.buffer] = found.get(access.buffer, 0) + prod(v.extent for v in variables)
    return found


def ops_in(items: Sequence[Item]) -> Iterator[OpInst]:
    """The operators of stages, and of loops among them."""
    for item in items:
        yield from item.ops if isinstance(item, Stage) else ops_in(item.body)
