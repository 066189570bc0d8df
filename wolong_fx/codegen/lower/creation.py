"""Tensors made of nothing: constants and ranges; they live in expressions, never in memory."""

from __future__ import annotations

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
    cast,
    constant,
    constant_expr,
)
from wolong_fx.ir.expr import Expr, IndexValue
from wolong_fx.ir.types import DType

aten = torch.ops.aten


def _filled(node: Node, value: float | int | bool) -> TensorValue:
    result = node.meta["val"]
    return constant(value, DTYPES[result.dtype], tuple(result.shape))


@lowers(aten.full.default, aten.full_like.default, aten.new_full.default, unless=lambda n: _symbolic_fill(n))
def lower_full(_: Lowering, node: Node, *args: Any, **_layout: Any) -> TensorValue:
    return _filled(node, args[-1] if len(args) > 1 else node.kwargs["fill_value"])  # type: ignore[arg-type]


def _symbolic_fill(node: Node) -> str | None:
    fill = node.args[-1] if len(node.args) > 1 else node.kwargs.get("fill_value")
    return None if isinstance(fill, bool | int | float) else "a fill value that is no number"


@lowers(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
)
def lower_zeros(_: Lowering, node: Node, *_args: Any, **_layout: Any) -> TensorValue:
    return _filled(node, 0)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def lower_ones(_: Lowering, node: Node, *_args: Any, **_layout: Any) -> TensorValue:
    return _filled(node, 1)


@lowers(aten.scalar_tensor.default)
def lower_scalar_tensor(_: Lowering, node: Node, value: float | int | bool, **_layout: Any) -> TensorValue:
    return _filled(node, value)


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def lower_arange(_: Lowering, node: Node, *bounds: Any, **_layout: Any) -> TensorValue:
    start = bounds[0] if len(bounds) > 1 else 0
    return _ramp(node, start, bounds[2] if len(bounds) > 2 else 1)


@lowers(aten.iota.default if hasattr(aten, "iota") else torch.ops.prims.iota.default)
def lower_iota(
    _: Lowering, node: Node, _length: int, *, start: int = 0, step: int = 1, **_kw: Any
) -> TensorValue:
    return _ramp(node, start, step)


def _ramp(node: Node, start: float | int, step: float | int) -> TensorValue:
    """start, start + step, ...; computed as torch does: in the result's type, float32 for half precisions."""
    result = node.meta["val"]
    dtype = DTYPES[result.dtype]
    whole = isinstance(start, int) and isinstance(step, int) and not dtype.is_float

    def at(point: Coordinates) -> Expr:
        if whole:
            return cast(IndexValue(point[0] * int(step) + int(start)), dtype)
        position = cast(IndexValue(point[0]), dtype.compute)
        scaled = binary("mul", position, constant_expr(step, dtype.compute))
        return cast(binary("add", scaled, constant_expr(start, dtype.compute)), dtype)

    return TensorValue(tuple(result.shape), dtype, at, cost=0 if whole else 2)


@lowers(aten.eye.default, aten.eye.m)
def lower_eye(_: Lowering, node: Node, *_args: Any, **_layout: Any) -> TensorValue:
    result = node.meta["val"]
    dtype = DTYPES[result.dtype]

    def at(point: Coordinates) -> Expr:
        same = binary("eq", IndexValue(point[0] - point[1]), constant_expr(0, DType.I64))
        return cast(same, dtype)

    return TensorValue(tuple(result.shape), dtype, at, cost=1)
