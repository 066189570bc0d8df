"""Views, splits and joins: index maps. Only a join needs memory, and its producers write there directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering, domain_of
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import (
    DTYPES,
    Coordinates,
    TensorValue,
    binary,
    broadcast,
    cast,
    constant_expr,
    of_buffer,
    reindexed,
    reshaped,
)
from wolong_fx.ir.expr import Access, Expr, IndexValue, Load, Where
from wolong_fx.ir.index import Index
from wolong_fx.ir.program import Store
from wolong_fx.ir.types import DType

aten = torch.ops.aten


def result_shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


@lowers(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
)
def lower_reshape(_: Lowering, node: Node, x: TensorValue, *_args: object) -> TensorValue:
    return reshaped(x, result_shape(node))


@lowers(aten.expand.default)
def lower_expand(_: Lowering, node: Node, x: TensorValue, *_args: object, **_implicit: object) -> TensorValue:
    return broadcast(x, result_shape(node))


@lowers(aten.permute.default)
def lower_permute(_: Lowering, node: Node, x: TensorValue, order: Sequence[int]) -> TensorValue:
    inverse = _inverse([d % x.rank for d in order])
    return reindexed(x, result_shape(node), lambda at: tuple(at[i] for i in inverse))


@lowers(aten.t.default)
def lower_t(lowering: Lowering, node: Node, x: TensorValue) -> TensorValue:
    return lower_permute(lowering, node, x, list(reversed(range(x.rank))))


@lowers(aten.transpose.int)
def lower_transpose(lowering: Lowering, node: Node, x: TensorValue, first: int, second: int) -> TensorValue:
    order = list(range(x.rank))
    if order:
        order[first % x.rank], order[second % x.rank] = second % x.rank, first % x.rank
    return lower_permute(lowering, node, x, order)


def _inverse(order: Sequence[int]) -> list[int]:
    inverse = [0] * len(order)
    for position, source in enumerate(order):
        inverse[source] = position
    return inverse


@lowers(aten.slice.Tensor)
def lower_slice(
    _: Lowering,
    node: Node,
    x: TensorValue,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorValue:
    first, _last, _step = slice(start, end).indices(x.shape[dim % x.rank])
    return _along(x, dim % x.rank, result_shape(node), lambda i: i * step + first)


@lowers(aten.select.int)
def lower_select(_: Lowering, node: Node, x: TensorValue, dim: int, index: int) -> TensorValue:
    dim, index = dim % x.rank, index % x.shape[dim % x.rank]
    return reindexed(x, result_shape(node), lambda at: (*at[:dim], Index(index), *at[dim:]))


@lowers(aten.flip.default)
def lower_flip(_: Lowering, node: Node, x: TensorValue, dims: Sequence[int]) -> TensorValue:
    flipped = {d % x.rank for d in dims}
    return reindexed(
        x, x.shape, lambda at: tuple(x.shape[d] - 1 - i if d in flipped else i for d, i in enumerate(at))
    )


@lowers(aten.repeat.default)
def lower_repeat(_: Lowering, node: Node, x: TensorValue, repeats: Sequence[int]) -> TensorValue:
    lead = len(repeats) - x.rank
    return reindexed(
        x, result_shape(node), lambda at: tuple(i % n for i, n in zip(at[lead:], x.shape, strict=True))
    )


@lowers(aten.diagonal.default)
def lower_diagonal(
    _: Lowering, node: Node, x: TensorValue, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> TensorValue:
    first, second = dim1 % x.rank, dim2 % x.rank
    others = [d for d in range(x.rank) if d not in (first, second)]

    def to_source(at: Coordinates) -> Coordinates:
        place = dict(zip(others, at[:-1], strict=True))
        place |= {first: at[-1] + max(-offset, 0), second: at[-1] + max(offset, 0)}
        return tuple(place[d] for d in range(x.rank))

    return reindexed(x, result_shape(node), to_source)


def _along(x: TensorValue, dim: int, shape: Sequence[int], change: Callable[[Index], Index]) -> TensorValue:
    """A view that maps the coordinate of one dimension and keeps the others."""
    return reindexed(x, shape, lambda at: tuple(change(i) if d == dim else i for d, i in enumerate(at)))


# ---- one tensor to several


@lowers(aten.split_with_sizes.default)
def lower_split_with_sizes(
    _: Lowering, node: Node, x: TensorValue, sizes: Sequence[int], dim: int = 0
) -> list[TensorValue]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_slab(x, dim % x.rank, start, size) for start, size in zip(starts, sizes, strict=True)]


@lowers(aten.split.Tensor)
def lower_split(_: Lowering, node: Node, x: TensorValue, _size: int, dim: int = 0) -> list[TensorValue]:
    sizes = [part.shape[dim] for part in node.meta["val"]]
    return lower_split_with_sizes(_, node, x, sizes, dim)


@lowers(aten.unbind.int)
def lower_unbind(_: Lowering, node: Node, x: TensorValue, dim: int = 0) -> list[TensorValue]:
    dim %= x.rank
    shape = x.shape[:dim] + x.shape[dim + 1 :]

    def part(index: int) -> TensorValue:
        return reindexed(x, shape, lambda at: (*at[:dim], Index(index), *at[dim:]))

    return [part(i) for i in range(x.shape[dim])]


def _slab(x: TensorValue, dim: int, start: int, size: int) -> TensorValue:
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return _along(x, dim, shape, lambda i: i + start)


# ---- several tensors to one


@lowers(aten.cat.default)
def lower_cat(lowering: Lowering, node: Node, parts: Sequence[TensorValue], dim: int = 0) -> TensorValue:
    dtype, shape = DTYPES[node.meta["val"].dtype], result_shape(node)
    parts = [p for p in parts if p.shape != (0,)]  # torch's legacy: an empty 1-D tensor joins anything
    return _joined(lowering, parts, dim % len(shape), dtype, shape)


@lowers(aten.stack.default)
def lower_stack(lowering: Lowering, node: Node, parts: Sequence[TensorValue], dim: int = 0) -> TensorValue:
    dtype, shape = DTYPES[node.meta["val"].dtype], result_shape(node)
    dim %= len(shape)
    raised = [reshaped(p, (*p.shape[:dim], 1, *p.shape[dim:])) for p in parts]
    return _joined(lowering, raised, dim, dtype, shape)


def _joined(
    lowering: Lowering, parts: Sequence[TensorValue], dim: int, dtype: DType, shape: tuple[int, ...]
) -> TensorValue:
    """A buffer whose slices are written part by part; fusion lets each producer write its own."""
    follows_channels = any(p.elements and lowering.runs_along_channels(p) for p in parts)
    buffer = lowering.temporary(shape, dtype, channels_last=follows_channels)
    start = [0] * len(shape)
    for part in parts:
        lowering.store_whole(buffer, converted(part, dtype), start)
        start[dim] += part.shape[dim]
    return of_buffer(buffer)


def converted(x: TensorValue, dtype: DType) -> TensorValue:
    """`x` in another dtype."""
    if x.dtype is dtype:
        return x
    return TensorValue(x.shape, dtype, lambda at: cast(x.at(at), dtype), cost=x.cost + 1)


# ---- padding, writing into a part


def padded(
    lowering: Lowering, x: TensorValue, shape: Sequence[int], before: Sequence[int], fill: float
) -> TensorValue:
    """`x` inside a larger (or smaller) tensor, `before[d]` elements from its start; `fill` around it."""
    buffer = lowering.as_buffer(x)
    fill = constant_expr(fill, x.dtype).value

    def at(point: Coordinates) -> Expr:
        return Load(Access(buffer, tuple(i - b for i, b in zip(point, before, strict=True))), fill)

    return TensorValue(tuple(shape), x.dtype, at, cost=1)


@lowers(aten.constant_pad_nd.default)
def lower_constant_pad(
    lowering: Lowering, node: Node, x: TensorValue, pad: Sequence[int], value: float = 0
) -> TensorValue:
    before = [0] * x.rank
    for position, amount in enumerate(pad[::2]):
        before[x.rank - 1 - position] = amount
    return padded(lowering, x, result_shape(node), before, value)


@lowers(aten.select_scatter.default)
def lower_select_scatter(
    lowering: Lowering, node: Node, x: TensorValue, part: TensorValue, dim: int, index: int
) -> TensorValue:
    dim %= x.rank
    index %= x.shape[dim]
    raised = reshaped(part, (*part.shape[:dim], 1, *part.shape[dim:]))
    return _overlaid(lowering, x, raised, dim, index, 1)


@lowers(aten.slice_scatter.default)
def lower_slice_scatter(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    part: TensorValue,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorValue:
    first, _last, _step = slice(start, end).indices(x.shape[dim % x.rank])
    return _overlaid(lowering, x, part, dim % x.rank, first, step)


def _overlaid(
    lowering: Lowering, x: TensorValue, part: TensorValue, dim: int, start: int, step: int
) -> TensorValue:
    """`x` with the elements start, start + step, ... of one dimension replaced by those of `part`."""
    if not part.elements:
        return x
    if x.buffer is not None and lowering.may_change(x):
        dims, place = domain_of(part.shape)
        there = tuple(i * step + start if d == dim else i for d, i in enumerate(place))
        new = converted(part, x.dtype).at(place)
        lowering.add_op(dims, (Store(Access(x.buffer, there), new),))
        return x
    buffer = lowering.as_buffer(converted(part, x.dtype))
    count = part.shape[dim]

    def at(point: Coordinates) -> Expr:
        offset = point[dim] - start
        inside = tuple((offset // step) if d == dim else i for d, i in enumerate(point))
        new = Load(Access(buffer, inside), constant_expr(0, x.dtype).value)
        return Where(_is_multiple_below(offset, step, count), new, x.at(point))

    return TensorValue(x.shape, x.dtype, at, cost=x.cost + 2)


def _is_multiple_below(offset: Index, step: int, count: int) -> Expr:
    """Whether offset is one of 0, step, ... (count - 1) * step."""
    inside = binary(
        "and",
        binary("ge", IndexValue(offset), constant_expr(0, DType.I64)),
        binary("lt", IndexValue(offset), constant_expr(count * step, DType.I64)),
    )
    if step == 1:
        return inside
    return binary("and", inside, binary("eq", IndexValue(offset % step), constant_expr(0, DType.I64)))
