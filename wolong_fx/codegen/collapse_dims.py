"""Fewer, longer dimensions: neighbours that every access walks through as one become one.

A pointwise operator on a contiguous (B, T, H) tensor becomes one long loop, and the steps and rows of a
batched MatMul become one dimension of rows, which is what register blocking wants.
"""

from __future__ import annotations

from collections.abc import Iterator

from wolong_fx.codegen.rewrite import rename_variables, substitute_variables
from wolong_fx.ir.expr import IndexValue, Load
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst


def collapse_dims(op: OpInst) -> OpInst:
    """Merge neighbouring parallel dimensions as long as every element offset stays free of `//` and `%`."""
    position = len(op.dims) - 1
    while position > 0:
        merged = _merged(op, position - 1)
        if merged is not None:
            op = merged
        position -= 1
    return rename_variables(op)


def _merged(op: OpInst, first: int) -> OpInst | None:
    outer, inner = op.dims[first], op.dims[first + 1]
    if outer.sequential or inner.sequential:
        return None
    if not all(_is_one_walk(offset, outer.var, inner.var) for offset in _offsets(op)):
        return None
    both = Var(f"{outer.var.name}.{inner.var.name}", outer.extent * inner.extent)
    values = {outer.var: Index.of(both) // inner.extent, inner.var: Index.of(both) % inner.extent}
    return substitute_variables(op, values, (*op.dims[:first], Dim(both), *op.dims[first + 2 :]))


def _is_one_walk(offset: Index, outer: Var, inner: Var) -> bool:
    """Whether one step of `outer` is as long as all of `inner`'s, and both stand outside divisions."""
    if offset.uses_nested(outer) or offset.uses_nested(inner):
        return False
    return offset.coefficient(outer) == offset.coefficient(inner) * inner.extent


def _offsets(op: OpInst) -> Iterator[Index]:
    """Every quantity that must stay affine: offsets, padded coordinates one by one, index values."""
    for store in op.stores:
        yield store.access.offset()
    for node in op.expressions():
        if isinstance(node, Load) and node.fill is not None:
            yield from node.access.affine
        elif isinstance(node, Load):
            yield node.access.offset()
        elif isinstance(node, IndexValue):
            yield node.index
