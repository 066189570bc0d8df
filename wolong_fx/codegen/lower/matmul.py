"""Matrix products: a sum over k of a product of two loads. Bias and scaling are ordinary pointwise work
around it.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.pointwise import Scalar, elementwise
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import (
    DTYPES,
    Coordinates,
    TensorValue,
    binary,
    cast,
    constant,
    constant_expr,
    of_buffer,
    reduced,
    reshaped,
)
from wolong_fx.ir.expr import Expr
from wolong_fx.ir.index import Index, Var

aten = torch.ops.aten


def product(lowering: Lowering, node: Node, a: TensorValue, b: TensorValue) -> TensorValue:
    """a (..., M, K) times b (..., K, N), batch dimensions equal; accumulated in the compute type, rounded
    once.

    An operand that is read several times over is put in memory first if it is not there; one that meets a
    single row or column (the keys and values of one query, scaled or masked) is computed where it is read.
    """
    dtype = DTYPES[node.meta["val"].dtype]
    shape = (*a.shape[:-1], b.shape[-1])
    depth = a.shape[-1]
    if not depth:
        return constant(0, dtype, shape)
    a = a if b.shape[-1] == 1 else lowering.realised(a)
    b = b if a.shape[-2] == 1 else lowering.realised(b)
    k = Var(f"k{len(lowering.ops)}", depth)

    def at(point: Coordinates) -> Expr:
        *batch, row, column = point
        left = cast(a.at((*batch, row, Index.of(k))), dtype.compute)
        right = cast(b.at((*batch, Index.of(k), column)), dtype.compute)
        return cast(reduced("sum", (k,), binary("mul", left, right)), dtype)

    return TensorValue(shape, dtype, at, cost=depth * (2 + a.cost + b.cost))


def kept(lowering: Lowering, value: TensorValue) -> TensorValue:
    """A heavy value in memory of its own: fusion decides later whether it joins its reader."""
    return of_buffer(lowering.as_buffer(value)) if value.elements else value


@lowers(aten.mm.default, aten.bmm.default)
def lower_mm(lowering: Lowering, node: Node, a: TensorValue, b: TensorValue) -> TensorValue:
    return kept(lowering, product(lowering, node, a, b))


@lowers(aten.mv.default)
def lower_mv(lowering: Lowering, node: Node, a: TensorValue, x: TensorValue) -> TensorValue:
    column = product(lowering, node, a, reshaped(x, (x.shape[0], 1)))
    return kept(lowering, reshaped(column, (a.shape[0],)))


@lowers(aten.dot.default)
def lower_dot(lowering: Lowering, node: Node, x: TensorValue, y: TensorValue) -> TensorValue:
    one = product(lowering, node, reshaped(x, (1, x.shape[0])), reshaped(y, (y.shape[0], 1)))
    return kept(lowering, reshaped(one, ()))


@lowers(aten.addmm.default, aten.baddbmm.default)
def lower_addmm(
    lowering: Lowering,
    node: Node,
    bias: TensorValue,
    a: TensorValue,
    b: TensorValue,
    *,
    beta: Scalar = 1,
    alpha: Scalar = 1,
) -> TensorValue:
    """beta * bias + alpha * (a @ b); beta = 0 ignores the bias, NaNs in it too, as torch does."""
    dots = product(lowering, node, a, b)
    if beta == 0:
        return kept(lowering, elementwise(node, lambda d: _scaled(d, alpha), dots))

    def formula(first: Expr, second: Expr) -> Expr:
        return binary("add", _scaled(first, beta), _scaled(second, alpha))

    return kept(lowering, elementwise(node, formula, bias, dots))


def _scaled(x: Expr, factor: Scalar) -> Expr:
    return x if factor == 1 else binary("mul", x, constant_expr(factor, x.dtype))
