"""What a node of an FX graph is during lowering: an expression at every coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from wolong_fx.ir.expr import Access, Binary, Cast, Const, Expr, Load, Reduce, Unary
from wolong_fx.ir.index import Index, Var, contiguous_strides, delinearise, linear
from wolong_fx.ir.types import Buffer, DType

Coordinates = tuple[Index, ...]

DTYPES: dict[torch.dtype, DType] = {
    torch.float64: DType.F64,
    torch.float32: DType.F32,
    torch.bfloat16: DType.BF16,
    torch.float16: DType.F16,
    torch.int64: DType.I64,
    torch.int32: DType.I32,
    torch.int16: DType.I16,
    torch.int8: DType.I8,
    torch.uint8: DType.U8,
    torch.bool: DType.BOOL,
}
TORCH_DTYPES = {ours: theirs for theirs, ours in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class TensorValue:
    """A tensor that may not exist in memory.

    at: coordinates (one Index a dimension, in range) -> the element, of dtype `dtype`
    buffer: set when the value is the whole of a buffer, element for element, in the buffer's own shape
    cost: operations that computing one element takes; a load counts nothing
    """

    shape: tuple[int, ...]
    dtype: DType
    at: Callable[[Coordinates], Expr]
    buffer: Buffer | None = None
    cost: int = 0
    is_load: bool = False

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)


def of_buffer(buffer: Buffer) -> TensorValue:
    """The value held by a buffer."""
    return TensorValue(
        buffer.shape, buffer.dtype, lambda at: Load(Access(buffer, at)), buffer=buffer, is_load=True
    )


def constant(value: float | int | bool, dtype: DType, shape: tuple[int, ...] = ()) -> TensorValue:
    """The same number everywhere, already in range of `dtype`."""
    expr = constant_expr(value, dtype)
    return TensorValue(shape, dtype, lambda at: expr)


def constant_expr(value: float | int | bool, dtype: DType) -> Const:
    """A constant of any dtype; half precisions are rounded here, once."""
    if dtype is DType.BOOL:
        return Const(bool(value), dtype)
    if dtype.is_integer:
        return Const(int(torch.tensor(value).to(TORCH_DTYPES[dtype])), dtype)
    return Const(float(torch.tensor(value, dtype=torch.float64).to(TORCH_DTYPES[dtype])), dtype)


def reindexed(
    value: TensorValue, shape: Sequence[int], to_source: Callable[[Coordinates], Coordinates]
) -> TensorValue:
    """A view: element `at` of the result is element `to_source(at)` of `value`."""
    return TensorValue(
        tuple(shape), value.dtype, lambda at: value.at(to_source(at)), cost=value.cost, is_load=value.is_load
    )


def reshaped(value: TensorValue, shape: Sequence[int]) -> TensorValue:
    """Row-major reshape; the two shapes hold equally many elements."""
    shape = tuple(shape)
    if shape == value.shape:
        return value
    if 0 in shape:
        return reindexed(value, shape, lambda at: (Index(),) * value.rank)
    strides = contiguous_strides(shape)
    return reindexed(value, shape, lambda at: delinearise(linear(at, strides), value.shape))


def broadcast(value: TensorValue, shape: Sequence[int]) -> TensorValue:
    """Numpy-style broadcasting of `value` to `shape`."""
    shape = tuple(shape)
    if value.shape == shape:
        return value
    lead = len(shape) - value.rank
    stretched = [n == 1 for n in value.shape]

    def to_source(at: Coordinates) -> Coordinates:
        return tuple(Index() if one else i for one, i in zip(stretched, at[lead:], strict=True))

    return reindexed(value, shape, to_source)


def reduced(op: str, variables: Sequence[Var], body: Expr) -> Expr:
    """`op` over `body` at every value of some variables; the body itself where each has but one."""
    over = tuple(v for v in variables if v.extent != 1)
    return Reduce(op, over, body) if over else body


def cast(expr: Expr, dtype: DType) -> Expr:
    """`expr` in another dtype; widening and narrowing back again is dropped, since it changes nothing."""
    if expr.dtype is dtype:
        return expr
    if isinstance(expr, Const):
        return constant_expr(expr.value, dtype)
    if isinstance(expr, Cast) and expr.x.dtype is dtype and is_widening(dtype, expr.to):
        return expr.x
    return Cast(expr, dtype)


def is_widening(narrow: DType, wide: DType) -> bool:
    """Whether every value of `narrow` exists in `wide`."""
    widest = {DType.BF16: DType.F32, DType.F16: DType.F32, DType.F32: DType.F64, DType.I32: DType.I64}
    while narrow in widest and narrow is not wide:
        narrow = widest[narrow]
    return narrow is wide


def binary(op: str, a: Expr, b: Expr) -> Expr:
    return Binary(op, a, b)


def unary(op: str, x: Expr) -> Expr:
    return Unary(op, x)
