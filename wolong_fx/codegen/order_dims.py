"""Which dimension runs over lanes: the one along which most accesses touch neighbours.

A domain's order is the accident of its first reader: fused with a result that is kept transposed, a whole
LSTM cell would step through memory by rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from wolong_fx.codegen.rewrite import rename_variables
from wolong_fx.ir.expr import Access
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst

STORE_WEIGHT = 2  # a scattered store costs a read of its line as well


def order_dims(op: OpInst) -> OpInst:
    """The operator with its dimensions in the order of its memory; points and results are the same."""
    if len(op.dims) < 2 or any(d.sequential for d in op.dims):
        return op
    lane = max(op.dims, key=lambda d: (_neighbours(op, d.var), op.dims.index(d)))
    outer = sorted((d for d in op.dims if d is not lane), key=lambda d: -_stride(op, d.var))
    return rename_variables(replace(op, dims=(*outer, lane)))


def _neighbours(op: OpInst, var: Var) -> int:
    """Weight of the accesses in which one step of `var` goes to the next element."""
    return sum(weight for access, weight in _accesses(op) if _step(access, var) == 1)


def _stride(op: OpInst, var: Var) -> int:
    return max(abs(_step(store.access, var)) for store in op.stores)


def _step(access: Access, var: Var) -> int:
    offset = access.offset()
    return 0 if offset.uses_nested(var) else offset.coefficient(var)


def _accesses(op: OpInst) -> Iterator[tuple[Access, int]]:
    for store in op.stores:
        yield store.access, STORE_WEIGHT
    for load in op.loads():
        yield load.access, 1
