"""Pointwise operators: broadcasting, type promotion as torch has it, one expression an element.

Half precisions are computed in float32 and rounded after every operator, exactly where eager rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import (
    DTYPES,
    Coordinates,
    TensorValue,
    binary,
    broadcast,
    cast,
    constant,
    constant_expr,
    unary,
)
from wolong_fx.ir.expr import Expr, Where
from wolong_fx.ir.types import DType

aten = torch.ops.aten

Scalar = float | int | bool
Operand = TensorValue | Scalar
Formula = Callable[..., Expr]


def elementwise(
    node: Node, formula: Formula, *operands: Operand, compute: DType | None = None, cost: int = 1
) -> TensorValue:
    """The value `formula(*operands)` of a node, computed in `compute` (by default the result's own type).

    Operands are brought to `compute` first, which rounds numbers too: x_bf16 < 0.1 compares with bfloat16's
    0.1. Its arithmetic may be done in a wider type.

    formula: expressions of dtype `compute.compute` -> an expression of any dtype
    """
    result = node.meta["val"]
    dtype, shape = DTYPES[result.dtype], tuple(result.shape)
    common = compute or dtype
    values = [broadcast(_as_value(o, common), shape) for o in operands]

    def at(point: Coordinates) -> Expr:
        return cast(formula(*(cast(cast(v.at(point), common), common.compute) for v in values)), dtype)

    return TensorValue(shape, dtype, at, cost=cost + sum(v.cost for v in values))


def _as_value(operand: Operand, dtype: DType) -> TensorValue:
    return operand if isinstance(operand, TensorValue) else constant(operand, dtype)


def promoted(node: Node) -> DType:
    """The type torch would compute this node's operands in, before a comparison makes them bool."""
    tensors_and_numbers = [_promotion_operand(a) for a in node.args]
    present = [a for a in tensors_and_numbers if a is not None]
    dtype = torch.result_type(present[0], present[-1])
    return DTYPES[dtype]


def _promotion_operand(arg: Any) -> Any:
    if isinstance(arg, Node):
        return arg.meta["val"]
    return arg if isinstance(arg, bool | int | float) else None


# ---- one operand

_UNARY: dict[Any, str] = {
    aten.neg.default: "neg",
    aten.abs.default: "abs",
    aten.sign.default: "sign",
    aten.sgn.default: "sign",
    aten.exp.default: "exp",
    aten.exp2.default: "exp2",
    aten.expm1.default: "expm1",
    aten.log.default: "log",
    aten.log2.default: "log2",
    aten.log10.default: "log10",
    aten.log1p.default: "log1p",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt",
    aten.reciprocal.default: "reciprocal",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.erf.default: "erf",
    aten.erfc.default: "erfc",
    aten.sin.default: "sin",
    aten.cos.default: "cos",
    aten.tan.default: "tan",
    aten.asin.default: "asin",
    aten.acos.default: "acos",
    aten.atan.default: "atan",
    aten.sinh.default: "sinh",
    aten.cosh.default: "cosh",
    aten.asinh.default: "asinh",
    aten.acosh.default: "acosh",
    aten.atanh.default: "atanh",
    aten.lgamma.default: "lgamma",
    aten.floor.default: "floor",
    aten.ceil.default: "ceil",
    aten.round.default: "round",
    aten.trunc.default: "trunc",
}
_ROUNDING = frozenset(("floor", "ceil", "round", "trunc"))


@lowers(*_UNARY)
def lower_unary(_: Lowering, node: Node, x: TensorValue) -> TensorValue:
    op = _UNARY[node.target]
    if (x.dtype is DType.BOOL and op in ("abs", "sign")) or (op in _ROUNDING and not x.dtype.is_float):
        return elementwise(node, lambda v: v, x)
    return elementwise(node, lambda v: unary(op, v), x)


@lowers(aten.isnan.default, aten.isinf.default, aten.logical_not.default)
def lower_test(_: Lowering, node: Node, x: TensorValue) -> TensorValue:
    if node.target is aten.logical_not.default:
        return elementwise(node, lambda v: unary("not", v), x, compute=DType.BOOL)
    op = "isnan" if node.target is aten.isnan.default else "isinf"
    if not x.dtype.is_float:
        return constant(False, DType.BOOL, x.shape)
    return elementwise(node, lambda v: unary(op, v), x, compute=x.dtype)


@lowers(aten.bitwise_not.default)
def lower_bitwise_not(_: Lowering, node: Node, x: TensorValue) -> TensorValue:
    return elementwise(node, lambda v: unary("not" if x.dtype is DType.BOOL else "bitnot", v), x)


@lowers(aten.relu.default)
def lower_relu(_: Lowering, node: Node, x: TensorValue) -> TensorValue:
    return elementwise(node, lambda v: binary("max", v, constant_expr(0, v.dtype)), x)


@lowers(aten.leaky_relu.default)
def lower_leaky_relu(_: Lowering, node: Node, x: TensorValue, slope: float = 0.01) -> TensorValue:
    def formula(v: Expr) -> Expr:
        return Where(_above_zero(v), v, binary("mul", v, constant_expr(slope, v.dtype)))

    return elementwise(node, formula, x, cost=2)


@lowers(aten.elu.default)
def lower_elu(
    _: Lowering, node: Node, x: TensorValue, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> TensorValue:
    def formula(v: Expr) -> Expr:
        grown = unary("expm1", _times(v, input_scale))
        return Where(_above_zero(v), _times(v, scale), _times(grown, alpha * scale))

    return elementwise(node, formula, x, cost=4)


@lowers(aten.gelu.default)
def lower_gelu(_: Lowering, node: Node, x: TensorValue, *, approximate: str = "none") -> TensorValue:
    def exact(v: Expr) -> Expr:
        return binary("mul", _times(v, 0.5), _plus(unary("erf", _times(v, math.sqrt(0.5))), 1.0))

    def by_tanh(v: Expr) -> Expr:
        cube = binary("mul", binary("mul", v, v), v)
        inner = _times(binary("add", v, _times(cube, 0.044715)), math.sqrt(2.0 / math.pi))
        return binary("mul", _times(v, 0.5), _plus(unary("tanh", inner), 1.0))

    return elementwise(node, by_tanh if approximate == "tanh" else exact, x, cost=8)


@lowers(aten.hardtanh.default)
def lower_hardtanh(
    _: Lowering, node: Node, x: TensorValue, low: Scalar = -1, high: Scalar = 1
) -> TensorValue:
    return elementwise(node, _clamped(low, high), x, cost=2)


@lowers(aten.clamp.default)
def lower_clamp(
    _: Lowering, node: Node, x: TensorValue, min: Scalar | None = None, max: Scalar | None = None
) -> TensorValue:
    return elementwise(node, _clamped(min, max), x, cost=2)


@lowers(aten.clamp.Tensor)
def lower_clamp_tensor(
    _: Lowering, node: Node, x: TensorValue, min: TensorValue | None = None, max: TensorValue | None = None
) -> TensorValue:
    bounds = [(op, b) for op, b in (("max", min), ("min", max)) if b is not None]

    def formula(v: Expr, *limits: Expr) -> Expr:
        for (op, _bound), limit in zip(bounds, limits, strict=True):
            v = binary(op, v, limit)
        return v

    return elementwise(node, formula, x, *(b for _op, b in bounds), cost=2)


def _clamped(low: Scalar | None, high: Scalar | None) -> Formula:
    def formula(v: Expr) -> Expr:
        if low is not None:
            v = binary("max", v, constant_expr(low, v.dtype))
        return v if high is None else binary("min", v, constant_expr(high, v.dtype))

    return formula


# ---- two operands

_ARITHMETIC: dict[Any, str] = {
    aten.remainder.Tensor: "mod",
    aten.remainder.Scalar: "mod",
    aten.fmod.Tensor: "fmod",
    aten.fmod.Scalar: "fmod",
    aten.pow.Tensor_Tensor: "pow",
    aten.pow.Scalar: "pow",
    aten.maximum.default: "max",
    aten.minimum.default: "min",
    aten.clamp_min.default: "max",
    aten.clamp_max.default: "min",
    aten.clamp_min.Tensor: "max",
    aten.clamp_max.Tensor: "min",
    aten.atan2.default: "atan2",
    aten.hypot.default: "hypot",
    aten.bitwise_and.Tensor: "and",
    aten.bitwise_or.Tensor: "or",
    aten.bitwise_xor.Tensor: "xor",
    aten.bitwise_and.Scalar: "and",
    aten.bitwise_or.Scalar: "or",
    aten.bitwise_xor.Scalar: "xor",
    aten.bitwise_left_shift.Tensor: "shl",
    aten.bitwise_right_shift.Tensor: "shr",
    aten.__lshift__.Tensor: "shl",
    aten.__lshift__.Scalar: "shl",
    aten.__rshift__.Tensor: "shr",
    aten.__rshift__.Scalar: "shr",
}
_ON_BOOLS = {"mul": "and", "add": "or", "max": "or", "min": "and"}


@lowers(*_ARITHMETIC)
def lower_arithmetic(_: Lowering, node: Node, a: Operand, b: Operand) -> TensorValue:
    return elementwise(node, _operation(_ARITHMETIC[node.target]), a, b)


def _operation(op: str) -> Formula:
    def formula(a: Expr, b: Expr) -> Expr:
        return binary(_ON_BOOLS.get(op, op) if a.dtype is DType.BOOL else op, a, b)

    return formula


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def lower_mul(_: Lowering, node: Node, a: Operand, b: Operand) -> TensorValue:
    return _with_wide_numbers(node, _operation("mul"), a, b)


@lowers(aten.div.Tensor, aten.div.Scalar)
def lower_div(_: Lowering, node: Node, a: Operand, b: Operand) -> TensorValue:
    return _with_wide_numbers(node, _operation("div"), a, b)


def _with_wide_numbers(node: Node, formula: Formula, a: Operand, b: Operand) -> TensorValue:
    """`formula(a, b)` where a number keeps its precision beside half ones, as eager has it."""
    dtype = DTYPES[node.meta["val"].dtype]
    is_number = not isinstance(b, TensorValue) or not b.rank
    return elementwise(node, formula, a, b, compute=dtype.compute if is_number else dtype)


@lowers(aten.add.Tensor, aten.add.Scalar)
def lower_add(_: Lowering, node: Node, a: Operand, b: Operand, alpha: Scalar = 1) -> TensorValue:
    if alpha == 1:
        return elementwise(node, _operation("add"), a, b)
    return elementwise(node, lambda x, y, s: binary("add", x, binary("mul", y, s)), a, b, alpha, cost=2)


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def lower_sub(_: Lowering, node: Node, a: Operand, b: Operand, alpha: Scalar = 1) -> TensorValue:
    if alpha == 1:
        return elementwise(node, _operation("sub"), a, b)
    return elementwise(node, lambda x, y, s: binary("sub", x, binary("mul", y, s)), a, b, alpha, cost=2)


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def lower_rsub(lowering: Lowering, node: Node, a: Operand, b: Operand, alpha: Scalar = 1) -> TensorValue:
    return lower_sub(lowering, node, b, a, alpha)


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode)
def lower_div_mode(
    _: Lowering, node: Node, a: Operand, b: Operand, *, rounding_mode: str | None = None
) -> TensorValue:
    op = {"floor": "floordiv", "trunc": "truncdiv", None: "div"}[rounding_mode]
    return _with_wide_numbers(node, _operation(op), a, b)


def _is_refused_power(node: Node) -> str | None:
    base, exponent = node.args
    whole = isinstance(base, Node) and not node.meta["val"].dtype.is_floating_point
    negative = isinstance(exponent, int | float) and exponent < 0
    return "integers to negative powers, which torch refuses" if whole and negative else None


@lowers(aten.pow.Tensor_Scalar, unless=_is_refused_power)
def lower_pow_scalar(_: Lowering, node: Node, x: TensorValue, exponent: Scalar) -> TensorValue:
    if exponent == 2:
        return elementwise(node, lambda v: binary("mul", v, v), x)
    if exponent == 3:
        return elementwise(node, lambda v: binary("mul", binary("mul", v, v), v), x, cost=2)
    if exponent == 0.5:
        return elementwise(node, lambda v: unary("sqrt", v), x)
    if exponent == -0.5:
        return elementwise(node, lambda v: unary("rsqrt", v), x)
    if exponent == 1:
        return elementwise(node, lambda v: v, x)
    return elementwise(node, _operation("pow"), x, exponent)


_COMPARISONS: dict[Any, str] = {
    getattr(getattr(aten, op), overload): op
    for op in ("eq", "ne", "lt", "le", "gt", "ge")
    for overload in ("Tensor", "Scalar")
}


@lowers(*_COMPARISONS)
def lower_comparison(_: Lowering, node: Node, a: Operand, b: Operand) -> TensorValue:
    op = _COMPARISONS[node.target]
    return elementwise(node, lambda x, y: binary(op, x, y), a, b, compute=promoted(node))


_LOGICAL: dict[Any, str] = {
    aten.logical_and.default: "and",
    aten.logical_or.default: "or",
    aten.logical_xor.default: "xor",
}


@lowers(*_LOGICAL)
def lower_logical(_: Lowering, node: Node, a: TensorValue, b: TensorValue) -> TensorValue:
    op = _LOGICAL[node.target]
    return elementwise(node, lambda x, y: binary(op, x, y), a, b, compute=DType.BOOL)


# ---- selection, conversion


@lowers(aten.where.self)
def lower_where(_: Lowering, node: Node, condition: TensorValue, a: Operand, b: Operand) -> TensorValue:
    result = node.meta["val"]
    dtype, shape = DTYPES[result.dtype], tuple(result.shape)
    cond, yes, no = (broadcast(_as_value(v, dtype), shape) for v in (condition, a, b))

    def at(point: Coordinates) -> Expr:
        return Where(cast(cond.at(point), DType.BOOL), cast(yes.at(point), dtype), cast(no.at(point), dtype))

    return TensorValue(shape, dtype, at, cost=1 + cond.cost + yes.cost + no.cost)


@lowers(
    aten._to_copy.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
)
def lower_copy(_: Lowering, node: Node, x: TensorValue, **_layout: Any) -> TensorValue:
    dtype = DTYPES[node.meta["val"].dtype]
    if dtype is x.dtype:
        return x
    return TensorValue(x.shape, dtype, lambda at: cast(x.at(at), dtype), cost=x.cost + 1)


# ---- small pieces of formulas


def _times(x: Expr, factor: Scalar) -> Expr:
    return x if factor == 1 else binary("mul", x, constant_expr(factor, x.dtype))


def _plus(x: Expr, addend: Scalar) -> Expr:
    return binary("add", x, constant_expr(addend, x.dtype))


def _above_zero(x: Expr) -> Expr:
    return binary("gt", x, constant_expr(0, x.dtype))
