"""A reduction over two dimensions seen as one runs over both again, where that makes every read regular.

The weight gradient of a recurrence sums over steps and rows at once, one factor being walked backwards: its
offset is `(T - 1 - k // B) * s + k % B * r`, divisions at every step. Over (step, row) it is affine.
"""

from __future__ import annotations

from collections.abc import Mapping

from wolong_fx.codegen.rewrite import rewrite_op
from wolong_fx.ir.expr import Expr, Load, Reduce, rebuild, walk
from wolong_fx.ir.index import Index, Quotient, Remainder, Var
from wolong_fx.ir.program import OpInst


def split_reductions(op: OpInst) -> OpInst:
    """The operator with reduction variables split that stand in `//` or `%` by one divisor of them."""

    def change(node: Expr) -> Expr | None:
        if not isinstance(node, Reduce):
            return None
        divisors = {v: _find_divisor(node, v) for v in node.over}
        if not any(divisors.values()):
            return None
        return _split(node, {v: n for v, n in divisors.items() if n})

    return rewrite_op(op, change=change)


def _find_divisor(reduce: Reduce, var: Var) -> int | None:
    """What a variable is divided by in the indices below, if that is one number that divides its extent."""
    loads = (node for node in walk(reduce.args) if isinstance(node, Load))
    atoms = (atom for load in loads for index in load.access.affine for atom, _ in index.terms)
    divided = [a for a in atoms if isinstance(a, Quotient | Remainder) and var in a.of.variables()]
    divisors = {a.by for a in divided}
    if len(divisors) != 1 or any(a.of != Index.of(var) for a in divided):
        return None
    (divisor,) = divisors
    return divisor if var.extent % divisor == 0 else None


def _split(reduce: Reduce, divisors: Mapping[Var, int]) -> Reduce:
    """The reduction over (quotient, remainder) instead of each variable, in the same order of points."""
    over: list[Var] = []
    values: dict[Var, Index] = {}
    for var in reduce.over:
        if var not in divisors:
            over.append(var)
            continue
        high = Var(f"{var.name}_high", var.extent // divisors[var])
        low = Var(f"{var.name}_low", divisors[var])
        over += [v for v in (high, low) if v.extent > 1]
        values[var] = Index.of(high) * divisors[var] + low
    (body,) = rebuild([reduce.body], index=lambda i: i.substitute(values))
    return Reduce(reduce.op, tuple(over), body)
