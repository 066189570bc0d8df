"""Reads and writes at positions that are data: embedding, gather, index, scatter and their backwards.

Every position is checked where it is used; one outside its dimension ends the call with the IndexError that
eager raises. Scatters that add run their updates in order, so the result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    of_buffer,
    reshaped,
)
from wolong_fx.codegen.lower.views import converted, result_shape
from wolong_fx.ir.expr import Access, Coordinate, Expr, Gather, Load, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, Store
from wolong_fx.ir.types import Buffer, DType

aten = torch.ops.aten

Place = Callable[[Coordinates], tuple[Coordinate, ...]]

OUT_OF_RANGE = "index out of range in self"


def position(value: Expr, extent: int, *, wraps: bool = False) -> Gather:
    """A data-dependent coordinate; with `wraps`, negative positions count from the end."""
    value = cast(value, DType.I64)
    if wraps:
        negative = binary("lt", value, constant_expr(0, DType.I64))
        value = Where(negative, binary("add", value, constant_expr(extent, DType.I64)), value)
    return Gather(value, OUT_OF_RANGE)


def _gathered(
    lowering: Lowering,
    source: TensorValue,
    shape: Sequence[int],
    place: Place,
    cost: int = 1,
) -> TensorValue:
    """The value whose element `at` is `source` at `place(at)`, coordinates that may be gathered."""
    buffer = lowering.as_buffer(source)
    return TensorValue(tuple(shape), source.dtype, lambda at: Load(Access(buffer, place(at))), cost=cost)


@lowers(aten.embedding.default)
def lower_embedding(
    lowering: Lowering, node: Node, weight: TensorValue, indices: TensorValue, *_options: object
) -> TensorValue:
    indices = lowering.realised(indices)

    def place(at: Coordinates) -> tuple[Coordinate, ...]:
        return position(indices.at(at[:-1]), weight.shape[0]), at[-1]

    return _gathered(lowering, weight, result_shape(node), place)


@lowers(aten.index_select.default)
def lower_index_select(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, indices: TensorValue
) -> TensorValue:
    x, indices = _raised(x), lowering.realised(_raised(indices))
    dim %= x.rank
    shape = (*x.shape[:dim], indices.elements, *x.shape[dim + 1 :])

    def place(at: Coordinates) -> tuple[Coordinate, ...]:
        row = indices.at((at[dim],))
        return (*at[:dim], position(row, x.shape[dim]), *at[dim + 1 :])

    return reshaped(_gathered(lowering, x, shape, place), result_shape(node))


def _raised(x: TensorValue) -> TensorValue:
    """A tensor without dimensions as one of one element: torch lets both be indexed."""
    return x if x.rank else reshaped(x, (1,))


@lowers(aten.gather.default)
def lower_gather(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, indices: TensorValue, **_sparse: object
) -> TensorValue:
    x, indices = _raised(x), lowering.realised(_raised(indices))
    dim %= x.rank

    def place(at: Coordinates) -> tuple[Coordinate, ...]:
        return (*at[:dim], position(indices.at(at), x.shape[dim]), *at[dim + 1 :])

    return reshaped(_gathered(lowering, x, indices.shape, place), result_shape(node))


def _scales_by_frequency(node: Node) -> str | None:
    scales = len(node.args) > 4 and bool(node.args[4])
    return "gradients scaled by frequency" if scales else None


@lowers(aten.embedding_dense_backward.default, unless=_scales_by_frequency)
def lower_embedding_backward(
    lowering: Lowering,
    node: Node,
    grad: TensorValue,
    indices: TensorValue,
    _rows: int,
    padding: int,
    _scale: bool,
) -> TensorValue:
    shape = result_shape(node)
    count = indices.elements
    rows = reshaped(lowering.realised(indices), (count,))
    flat = reshaped(grad, (count, shape[1]))

    def masked(at: Coordinates) -> Expr:
        is_padding = binary("eq", cast(rows.at(at[:1]), DType.I64), constant_expr(padding, DType.I64))
        return Where(is_padding, constant_expr(0, grad.dtype), flat.at(at))

    source = TensorValue(flat.shape, grad.dtype, masked, cost=flat.cost + 2) if padding >= 0 else flat
    buffer = _copied(lowering, constant(0, DTYPES[node.meta["val"].dtype], shape))
    return _scatter(
        lowering, buffer, source, lambda at: (position(rows.at(at[:1]), shape[0]), at[1]), _FIRST, "add"
    )


_FIRST = frozenset((0,))


# ---- aten.index: any dimensions may be indexed, together broadcast


def _is_mask(node: Node) -> str | None:
    positions = node.args[1]
    masks = any(
        isinstance(i, Node) and i.meta["val"].dtype in (torch.bool, torch.uint8)
        for i in positions  # type: ignore[union-attr]
    )
    return "a mask as index: the result's shape is data" if masks else None


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor, unless=_is_mask)
def lower_index(
    lowering: Lowering, node: Node, x: TensorValue, positions: Sequence[TensorValue | None]
) -> TensorValue:
    place = IndexedPlace(lowering, x.shape, positions)
    return _gathered(lowering, x, result_shape(node), place)


class IndexedPlace:
    """Coordinates in the source of an element of `x[i, None, j, ...]`, in numpy's order of dimensions."""

    def __init__(
        self, lowering: Lowering, shape: Sequence[int], positions: Sequence[TensorValue | None]
    ) -> None:
        self.shape = tuple(shape)
        given = {d: lowering.realised(p) for d, p in enumerate(positions) if p is not None}
        self.common = torch.broadcast_shapes(*(p.shape for p in given.values()))
        self.given = {d: broadcast(p, self.common) for d, p in given.items()}
        indexed = sorted(given)
        adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
        self.first = indexed[0] if adjacent else 0

    def __call__(self, at: Coordinates) -> tuple[Coordinate, ...]:
        width = len(self.common)
        shared = at[self.first : self.first + width]
        rest = iter((*at[: self.first], *at[self.first + width :]))
        return tuple(
            position(self.given[d].at(shared), n, wraps=True) if d in self.given else next(rest)
            for d, n in enumerate(self.shape)
        )

    def result_shape(self) -> tuple[int, ...]:
        """Shape of `x[...]`."""
        free = [n for d, n in enumerate(self.shape) if d not in self.given]
        return (*free[: self.first], *self.common, *free[self.first :])


# ---- writes


def _copied(lowering: Lowering, x: TensorValue) -> Buffer:
    """A buffer that starts as `x` and may be written: a new one, or that of x if the caller wants it so."""
    if x.buffer is not None and lowering.may_change(x):
        return x.buffer
    buffer = lowering.temporary(x.shape, x.dtype)
    lowering.store_whole(buffer, x)
    return buffer


def _scatter(
    lowering: Lowering,
    buffer: Buffer,
    source: TensorValue,
    place: Place,
    ordered: frozenset[int],
    accumulate: str | None,
) -> TensorValue:
    """Store `source[at]` at `place(at)` for all `at`; the dimensions in `ordered` run one after another."""
    if not source.elements:
        return of_buffer(buffer)
    variables = [Var(f"d{i}", n) for i, n in enumerate(source.shape)]
    at = tuple(Index.of(v) for v in variables)
    # Sequential dimensions stand first, so that what is left last runs over lanes.
    dims = [Dim(v, sequential=True) for d, v in enumerate(variables) if d in ordered and v.extent != 1]
    dims += [Dim(v) for d, v in enumerate(variables) if d not in ordered and v.extent != 1]
    lowering.add_op(tuple(dims), (Store(Access(buffer, place(at)), source.at(at), accumulate),))
    return of_buffer(buffer)


@lowers(aten.index_put.default, aten._unsafe_index_put.default, unless=_is_mask)
def lower_index_put(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    positions: Sequence[TensorValue | None],
    values: TensorValue,
    accumulate: bool = False,
) -> TensorValue:
    place = IndexedPlace(lowering, x.shape, positions)
    shape = place.result_shape()
    source = lowering.realised(broadcast(converted(values, x.dtype), shape))
    ordered = frozenset(range(place.first, place.first + len(place.common)))
    return _scatter(lowering, _copied(lowering, x), source, place, ordered, "add" if accumulate else None)


def _scattered(
    lowering: Lowering,
    x: TensorValue,
    dim: int,
    indices: TensorValue,
    source: TensorValue,
    accumulate: str | None,
) -> TensorValue:
    """x with source[at] stored or added at x[..., indices[at], ...]."""
    shape = x.shape
    x, source, indices = _raised(x), _raised(source), lowering.realised(_raised(indices))
    dim %= x.rank
    part = TensorValue(indices.shape, source.dtype, source.at, cost=source.cost, is_load=source.is_load)

    def place(at: Coordinates) -> tuple[Coordinate, ...]:
        return (*at[:dim], position(indices.at(at), x.shape[dim]), *at[dim + 1 :])

    result = _scatter(lowering, _copied(lowering, x), part, place, frozenset((dim,)), accumulate)
    return reshaped(result, shape)


@lowers(aten.scatter_add.default)
def lower_scatter_add(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, indices: TensorValue, source: TensorValue
) -> TensorValue:
    return _scattered(lowering, x, dim, indices, source, "add")


@lowers(aten.scatter.src)
def lower_scatter(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, indices: TensorValue, source: TensorValue
) -> TensorValue:
    return _scattered(lowering, x, dim, indices, source, None)


@lowers(aten.scatter.value)
def lower_scatter_value(
    lowering: Lowering, node: Node, x: TensorValue, dim: int, indices: TensorValue, value: float
) -> TensorValue:
    return _scattered(lowering, x, dim, indices, constant(value, x.dtype, indices.shape), None)


@lowers(aten.index_add.default)
def lower_index_add(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    dim: int,
    indices: TensorValue,
    source: TensorValue,
    *,
    alpha: float = 1,
) -> TensorValue:
    shape = x.shape
    x, source, indices = _raised(x), _raised(source), lowering.realised(_raised(indices))
    dim %= x.rank
    scale = constant_expr(alpha, x.dtype.compute)

    def scaled(at: Coordinates) -> Expr:
        element = source.at(at)
        if alpha == 1:
            return element
        return cast(binary("mul", cast(element, x.dtype.compute), scale), x.dtype)

    def place(at: Coordinates) -> tuple[Coordinate, ...]:
        return (*at[:dim], position(indices.at((at[dim],)), x.shape[dim]), *at[dim + 1 :])

    part = TensorValue(source.shape, source.dtype, scaled, cost=source.cost)
    result = _scatter(lowering, _copied(lowering, x), part, place, frozenset((dim,)), "add")
    return reshaped(result, shape)
