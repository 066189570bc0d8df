"""Along which dimensions of an operator the result of a reduction is the same: those that it serves."""

from __future__ import annotations

from collections.abc import Iterable

from wolong_fx.ir.expr import Expr, IndexValue, Load, Reduce
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst


def served_dims(op: OpInst) -> frozenset[Var]:
    """Dimensions along which every reduction of an operator has one result; none without reductions."""
    served = _served(op)
    return frozenset.intersection(*served) if served else frozenset()


def serves_equally(op: OpInst) -> bool:
    """Whether all reductions of an operator serve the same points: those of a row, or each its own."""
    return len(_served(op)) <= 1


def _served(op: OpInst) -> set[frozenset[Var]]:
    dims = frozenset(d.var for d in op.dims)
    free = free_variables(op.expressions())
    return {dims - free[id(n)] for n in op.expressions() if isinstance(n, Reduce)}


def free_variables(nodes: Iterable[Expr]) -> dict[int, frozenset[Var]]:
    """For each node (by id), the variables that its value depends on; `nodes` has operands first."""
    free: dict[int, frozenset[Var]] = {}
    for node in nodes:
        found = frozenset[Var]().union(*(free[id(a)] for a in node.args))
        if isinstance(node, Load):
            found = found.union(*(i.variables() for i in node.access.affine))
        elif isinstance(node, IndexValue):
            found = node.index.variables()
        elif isinstance(node, Reduce):
            found -= frozenset(node.over)
        free[id(node)] = found
    return free
