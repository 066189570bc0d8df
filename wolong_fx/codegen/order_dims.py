"""Which dimension runs over lanes: the one along which most accesses touch neighbours.

A domain's order is the accident of its first reader: fused with a result that is kept transposed, a whole
LSTM cell would step through memory by rows.

What a reduction serves (the elements of a row that it was made of) comes after what it depends on: loops are
nested in this order, and the reduction is computed outside of those that it serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from wolong_fx.codegen.rewrite import rename_variables
from wolong_fx.codegen.served_dims import served_dims
from wolong_fx.ir.expr import Access
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Dim, OpInst

STORE_WEIGHT = 2  # a scattered store costs a read of its line as well


def order_dims(op: OpInst) -> OpInst:
    """The operator with its dimensions in the order of its memory; points and results are the same."""
    if len(op.dims) < 2 or any(d.sequential for d in op.dims):
        return op
    served = served_dims(op)
    lane = find_lane(op)
    if len(served) > 1 and lane.var not in served:  # under a lane there is one more loop, not several
        lane = find_lane(replace(op, dims=tuple(d for d in op.dims if d.var in served)))
    outer = sorted(
        (d for d in op.dims if d is not lane), key=lambda d: (d.var in served, -_stride(op, d.var))
    )
    return rename_variables(replace(op, dims=(*outer, lane)))


def find_lane(op: OpInst) -> Dim:
    """The dimension of an operator along which most accesses touch neighbours; the later one of equals."""
    return max(op.dims, key=lambda d: (_neighbours(op, d.var), op.dims.index(d)))


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
