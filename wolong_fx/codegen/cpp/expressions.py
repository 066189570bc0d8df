"""Values of a tile program as C++: each defined once, in the outermost loop that has what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from wolong_fx.codegen.analysis import Analysis, operands_first
from wolong_fx.codegen.cpp.memory import Context, MemoryText
from wolong_fx.codegen.cpp.pointwise import (
    Use,
    as_vectors,
    binary_text,
    cast_text,
    const_text,
    unary_text,
    where_text,
)
from wolong_fx.codegen.cpp.row_tables import RowTable
from wolong_fx.codegen.cpp.scope import Value, c_type, index_text
from wolong_fx.ir.expr import Binary, Cast, Const, Expr, IndexValue, Load, Reduce, Unary, Where
from wolong_fx.ir.types import DType

DIVISIONS = frozenset("floordiv truncdiv mod fmod".split())
DIVISION_BY_ZERO = "ZeroDivisionError"
"""Message of the check of every integer division, as torch words it."""

ReduceText = Callable[[Reduce, Context], Value]


class ExpressionText:
    """Emits expressions; reductions are left to `reduce`."""

    def __init__(
        self, analysis: Analysis, memory: MemoryText, number_check: Callable[[str], int], use: Use
    ) -> None:
        self.analysis = analysis
        self.memory = memory
        self.number_check = number_check
        self.use = use
        self.reduce: ReduceText
        self.tabled: dict[int, RowTable] = {}
        self._orders: dict[tuple[int, ...], list[Expr]] = {}

    def values(self, roots: Sequence[Expr], ctx: Context) -> list[Value]:
        """The values of some expressions at one point (of each lane)."""
        found: dict[int, Value] = {}
        for node in self._order(roots):
            value = self._value(node, [found[id(a)] for a in self._operands(node)], ctx)
            found[id(node)] = value if isinstance(node, Const | Reduce) else self._named(value, ctx)
        return [found[id(r)] for r in roots]

    def _operands(self, node: Expr) -> tuple[Expr, ...]:
        """Operands at the same point: not what a reduction computes at others, or what is in a table."""
        return () if isinstance(node, Reduce) or id(node) in self.tabled else node.args

    def _order(self, roots: Sequence[Expr]) -> list[Expr]:
        key = tuple(id(r) for r in roots)
        if key not in self._orders:
            self._orders[key] = operands_first(roots, self._operands)
        return self._orders[key]

    def _named(self, value: Value, ctx: Context) -> Value:
        return replace(value, text=ctx.scopes.define(value.c_type, value.text, value.needs))

    def _value(self, node: Expr, args: list[Value], ctx: Context) -> Value:
        if id(node) in self.tabled:
            return self._from_table(self.tabled[id(node)], ctx)
        match node:
            case Load():
                return self.memory.load(node, args, ctx)
            case Const(value, kind):
                return Value(const_text(value, kind), kind, False, frozenset())
            case IndexValue(index):
                at = index.substitute(ctx.env)
                is_vector = ctx.lane in at.variables()
                text = index_text(at) if is_vector or at.variables() else const_text(at.constant, DType.I64)
                return Value(text, DType.I64, is_vector, at.variables())
            case Reduce():
                return self.reduce(node, ctx)
        return self._pointwise(node, as_vectors(args), ctx)

    def _from_table(self, table: RowTable, ctx: Context) -> Value:
        """The values of a vector of points, after the reduction that leaves them in the table."""
        assert self.analysis.lane is not None and ctx.lane is not None
        filled = self.reduce(table.reduce, ctx).needs
        at = ctx.env[self.analysis.lane.var]
        text = f"load({table.name} + {index_text(at.substitute({ctx.lane: 0}))})"
        return Value(text, table.used.dtype, True, filled | at.variables())

    def _pointwise(self, node: Expr, args: list[Value], ctx: Context) -> Value:
        needs = frozenset().union(*(a.needs for a in args))
        match node:
            case Cast(_, to):
                text = cast_text(args[0], to, self.use)
            case Unary(op):
                text = unary_text(op, args[0], self.use)
            case Binary(op):
                if op in DIVISIONS and args[0].dtype.is_integer:
                    args[1] = self._nonzero(node.b, args[1], ctx)
                    needs |= args[1].needs
                text = binary_text(op, args[0], args[1], self.use, node.b)
            case Where():
                text = where_text(*args)
            case _:
                raise AssertionError(type(node))
        return Value(text, node.dtype, args[0].is_vector, needs)

    def _nonzero(self, node: Expr, divisor: Value, ctx: Context) -> Value:
        """The divisor with zeros replaced by ones, after the check that there are none."""
        if isinstance(node, Const) and node.value:
            return divisor
        active, needs = "", divisor.needs
        if divisor.is_vector:
            active = f", {ctx.active.text}" if ctx.active else ", W"
            needs |= ctx.active.needs if ctx.active else frozenset()
        number = self.number_check(DIVISION_BY_ZERO) + 1
        text = f"nonzero({divisor.text}, failure, {number}{active})"
        name = ctx.scopes.define(c_type(divisor.dtype, divisor.is_vector), text, needs)
        return replace(divisor, text=name, needs=needs)
