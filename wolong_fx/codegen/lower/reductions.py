"""Reductions over whole dimensions. Each gets memory of its own; what it reads is computed inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf, prod

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.matmul import kept
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
    reduced,
    reshaped,
    unary,
)
from wolong_fx.ir.expr import Expr
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.types import DType

aten = torch.ops.aten

Dims = Sequence[int] | int | None


def reduced_dims(dim: Dims, rank: int) -> tuple[int, ...]:
    """The dimensions named by an ATen `dim` argument; None and [] mean all."""
    if dim is None or dim == []:
        return tuple(range(rank))
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(sorted({d % rank if rank else 0 for d in dims if rank}))


def reduction(
    lowering: Lowering,
    op: str,
    x: TensorValue,
    dims: tuple[int, ...],
    compute: DType,
    finish: Callable[[Expr], Expr] = lambda e: e,
) -> TensorValue:
    """`finish(op over dims of x)`, not yet in memory, without the reduced dimensions, of dtype `compute`."""
    over = {d: Var(f"k{len(lowering.ops)}_{d}", x.shape[d]) for d in dims}
    kept_shape = tuple(n for d, n in enumerate(x.shape) if d not in over)

    def at(point: Coordinates) -> Expr:
        rest = iter(point)
        place = tuple(Index.of(over[d]) if d in over else next(rest) for d in range(x.rank))
        return finish(reduced(op, tuple(over.values()), cast(x.at(place), compute)))

    return TensorValue(kept_shape, compute, at, cost=prod(x.shape[d] for d in dims) * (1 + x.cost))


def settled(lowering: Lowering, node: Node, value: TensorValue) -> TensorValue:
    """The reduction in memory, in the node's dtype and shape (keepdim puts back dimensions of extent 1)."""
    return settled_like(lowering, value, node.meta["val"])


def settled_like(lowering: Lowering, value: TensorValue, like: torch.Tensor) -> TensorValue:
    dtype = DTYPES[like.dtype]
    if value.dtype is not dtype:
        wide = value
        value = TensorValue(wide.shape, dtype, lambda at: cast(wide.at(at), dtype), cost=wide.cost)
    return reshaped(kept(lowering, value), tuple(like.shape))


def _over_nothing(node: Node) -> str | None:
    source, result = node.args[0], node.meta["val"]
    first = result[0] if isinstance(result, tuple | list) else result
    empty = isinstance(source, Node) and source.meta["val"].numel() == 0 and first.numel() > 0
    return "a reduction over nothing, which torch refuses" if empty else None


# ---- sums and products


@lowers(aten.sum.default, aten.sum.dim_IntList)
def lower_sum(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims = None, keepdim: bool = False, **_dtype: object
) -> TensorValue:
    compute = DTYPES[node.meta["val"].dtype].compute
    return settled(lowering, node, reduction(lowering, "sum", x, reduced_dims(dim, x.rank), compute))


@lowers(aten.mean.default, aten.mean.dim)
def lower_mean(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims = None, keepdim: bool = False, **_dtype: object
) -> TensorValue:
    compute = DTYPES[node.meta["val"].dtype].compute
    return settled(lowering, node, _mean(lowering, x, reduced_dims(dim, x.rank), compute))


def _mean(lowering: Lowering, x: TensorValue, dims: tuple[int, ...], compute: DType) -> TensorValue:
    """In memory, once: a variance and the mean beside it (a layer norm) share it."""
    key = (x, dims, compute)
    if key not in lowering.means:
        count = constant_expr(prod(x.shape[d] for d in dims), compute)
        mean = reduction(lowering, "sum", x, dims, compute, lambda total: binary("div", total, count))
        lowering.means[key] = kept(lowering, mean)
    return lowering.means[key]


@lowers(aten.prod.default, aten.prod.dim_int)
def lower_prod(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims = None, keepdim: bool = False, **_dtype: object
) -> TensorValue:
    compute = DTYPES[node.meta["val"].dtype].compute
    return settled(lowering, node, reduction(lowering, "prod", x, reduced_dims(dim, x.rank), compute))


# ---- norms


@lowers(aten.linalg_vector_norm.default, unless=_over_nothing)
def lower_vector_norm(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    order: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    **_dtype: object,
) -> TensorValue:
    """(sum |x|^order)^(1 / order); of the orders 0 and +-inf, what that tends to."""
    compute = DTYPES[node.meta["val"].dtype].compute
    op, grow, shrink = _norm_of(float(order), compute)
    sizes = TensorValue(x.shape, compute, lambda at: grow(cast(x.at(at), compute)), cost=x.cost + 2)
    return settled(lowering, node, reduction(lowering, op, sizes, reduced_dims(dim, x.rank), compute, shrink))


Formula = Callable[[Expr], Expr]


def _norm_of(order: float, dtype: DType) -> tuple[str, Formula, Formula]:
    """A norm's reduction, what it reduces of each element, and what it makes of the result."""
    if order == 2:
        return "sum", lambda x: binary("mul", x, x), lambda total: unary("sqrt", total)
    if order == 0:
        zero = constant_expr(0, dtype)
        return "sum", lambda x: cast(binary("ne", x, zero), dtype), lambda total: total
    if isinf(order):
        return "max" if order > 0 else "min", lambda x: unary("abs", x), lambda extreme: extreme
    power, root = constant_expr(order, dtype), constant_expr(1 / order, dtype)
    if order == 1:
        return "sum", lambda x: unary("abs", x), lambda total: total
    return (
        "sum",
        lambda x: binary("pow", unary("abs", x), power),
        lambda total: binary("pow", total, root),
    )


# ---- variance, in two passes over the data: no cancellation


def _variance(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims, correction: float
) -> tuple[TensorValue, ...]:
    """(variance, mean) with keepdim shapes dropped."""
    compute = x.dtype.compute
    dims = reduced_dims(dim, x.rank)
    mean = _mean(lowering, x, dims, compute)
    wide = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    middle = broadcast(reshaped(mean, wide), x.shape)

    def squared(point: Coordinates) -> Expr:
        distance = binary("sub", cast(x.at(point), compute), middle.at(point))
        return binary("mul", distance, distance)

    divisor = constant_expr(max(prod(x.shape[d] for d in dims) - correction, 0), compute)
    squares = TensorValue(x.shape, compute, squared, cost=x.cost + 2)
    variance = reduction(lowering, "sum", squares, dims, compute, lambda s: binary("div", s, divisor))
    return variance, mean


@lowers(aten.var.correction)
def lower_var(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    dim: Dims = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> TensorValue:
    x = lowering.realised(x)
    variance, _mean_value = _variance(lowering, node, x, dim, 1 if correction is None else correction)
    return settled(lowering, node, variance)


@lowers(aten.var_mean.correction)
def lower_var_mean(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    dim: Dims = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> list[TensorValue]:
    x = lowering.realised(x)
    pair = _variance(lowering, node, x, dim, 1 if correction is None else correction)
    results = node.meta["val"]
    return [settled_like(lowering, v, r) for v, r in zip(pair, results, strict=True)]


# ---- extremes


@lowers(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, unless=_over_nothing)
def lower_extreme(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims = None, keepdim: bool = False
) -> TensorValue:
    op = "max" if node.target in (aten.amax.default, aten.max.default) else "min"
    compute = x.dtype.compute
    dims = reduced_dims(dim, x.rank)
    if x.dtype is DType.BOOL:
        op = "any" if op == "max" else "all"
    return settled(lowering, node, reduction(lowering, op, x, dims, compute))


@lowers(aten.argmax.default, aten.argmin.default, unless=_over_nothing)
def lower_position(
    lowering: Lowering, node: Node, x: TensorValue, dim: int | None = None, keepdim: bool = False
) -> TensorValue:
    op = "argmax" if node.target is aten.argmax.default else "argmin"
    return _position(lowering, node, op, x, reduced_dims(dim, x.rank), node.meta["val"])


def _position(
    lowering: Lowering, node: Node, op: str, x: TensorValue, dims: tuple[int, ...], like: torch.Tensor
) -> TensorValue:
    if all(x.shape[d] == 1 for d in dims):
        return constant(0, DType.I64, tuple(like.shape))
    found = reduction(lowering, op, x, dims, DType.I32 if x.dtype is DType.BOOL else x.dtype.compute)
    whole = TensorValue(found.shape, DType.I64, found.at, cost=found.cost)
    return reshaped(kept(lowering, whole), tuple(like.shape))


@lowers(aten.max.dim, aten.min.dim, unless=_over_nothing)
def lower_extreme_and_position(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, keepdim: bool = False
) -> list[TensorValue]:
    x = lowering.realised(x)
    op = "max" if node.target is aten.max.dim else "min"
    values, positions = node.meta["val"]
    dims = reduced_dims(dim, x.rank)
    named = op if x.dtype is not DType.BOOL else {"max": "any", "min": "all"}[op]
    best = settled_like(lowering, reduction(lowering, named, x, dims, x.dtype.compute), values)
    return [best, _position(lowering, node, f"arg{op}", x, dims, positions)]


@lowers(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
def lower_any_all(
    lowering: Lowering, node: Node, x: TensorValue, dim: Dims = None, keepdim: bool = False
) -> TensorValue:
    op = "any" if node.target in (aten.any.default, aten.any.dim, aten.any.dims) else "all"
    keeps_all = node.target in (aten.any.dims, aten.all.dims) and dim == []  # here, alone, [] means none
    dims = () if keeps_all else reduced_dims(dim, x.rank)
    return settled(lowering, node, reduction(lowering, op, x, dims, DType.BOOL))


# ---- softmax: maximum, exponentials, their sum


@lowers(aten._softmax.default, unless=_over_nothing)
def lower_softmax(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, _half_to_float: bool
) -> TensorValue:
    dtype = DTYPES[node.meta["val"].dtype]
    grown = _grown(_shifted(lowering, x, dim))
    total = _spread(kept(lowering, reduction(lowering, "sum", grown, _one(dim, x), grown.dtype)), x, dim)
    return TensorValue(
        x.shape,
        dtype,
        lambda at: cast(binary("div", grown.at(at), total.at(at)), dtype),
        cost=grown.cost + 1,
    )


@lowers(aten._log_softmax.default, unless=_over_nothing)
def lower_log_softmax(lowering: Lowering, node: Node, x: TensorValue, dim: int, _half: bool) -> TensorValue:
    dtype = DTYPES[node.meta["val"].dtype]
    shifted = _shifted(lowering, x, dim)
    grown = _grown(shifted)
    logs = reduction(lowering, "sum", grown, _one(dim, x), grown.dtype, lambda s: unary("log", s))
    total = _spread(kept(lowering, logs), x, dim)
    return TensorValue(
        x.shape, dtype, lambda at: cast(binary("sub", shifted.at(at), total.at(at)), dtype), cost=2
    )


def _shifted(lowering: Lowering, x: TensorValue, dim: int) -> TensorValue:
    """x minus its maximum along `dim`, in the compute type."""
    x = lowering.realised(x)
    compute = x.dtype.compute
    most = _spread(kept(lowering, reduction(lowering, "max", x, _one(dim, x), compute)), x, dim)
    return TensorValue(
        x.shape, compute, lambda at: binary("sub", cast(x.at(at), compute), most.at(at)), cost=1
    )


def _grown(shifted: TensorValue) -> TensorValue:
    """Exponentials, computed where they are read: once a row, if whoever owns the row keeps them."""
    return TensorValue(
        shifted.shape, shifted.dtype, lambda at: unary("exp", shifted.at(at)), cost=shifted.cost + 4
    )


def _one(dim: int, x: TensorValue) -> tuple[int, ...]:
    return (dim % x.rank,) if x.rank else ()


def _spread(value: TensorValue, x: TensorValue, dim: int) -> TensorValue:
    """A reduction's result broadcast back over the dimension it dropped."""
    wide = tuple(1 if d in _one(dim, x) else n for d, n in enumerate(x.shape))
    return broadcast(reshaped(value, wide), x.shape)
