"""Pooling and nearest-neighbour resizing: reductions over windows, and their gradients.

A gradient gathers: each element of the input sums what the windows that looked at it pass back, so that no
two points write the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import (
    Coordinates,
    TensorValue,
    binary,
    cast,
    constant_expr,
    reduced,
    reindexed,
    reshaped,
)
from wolong_fx.codegen.lower.windows import Window, filled, is_multiple, positions, taps, windows_of
from wolong_fx.ir.expr import Const, Expr, IndexValue, Where
from wolong_fx.ir.index import Index, Var, contiguous_strides, linear
from wolong_fx.ir.types import DType

aten = torch.ops.aten

Numbers = int | Sequence[int]


def _each(value: Numbers, rank: int) -> tuple[int, ...]:
    """ATen's number, or list of one or `rank` numbers, as one a dimension; empty stays empty."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _batched(x: TensorValue, rank: int) -> TensorValue:
    """(C, *image) as (1, C, *image)."""
    return x if x.rank == rank + 2 else reshaped(x, (1, *x.shape))


def _over_nothing(node: Node) -> str | None:
    values = [n.meta["val"] for n in node.all_input_nodes]
    return "pooling of nothing, which torch treats by itself" if any(v.numel() == 0 for v in values) else None


def _reduced(name: str, op: str, windows: Sequence[Window], element: Callable[[list[Index]], Expr]) -> Expr:
    """`op` over the taps of the windows of one point."""
    tap = taps(windows, name)
    return reduced(op, tap, element([Index.of(v) for v in tap]))


# ---- averages


@lowers(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, unless=_over_nothing)
def lower_average_pool(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    _ceil_mode: bool = False,
    counts_padding: bool = True,
    divisor: int | None = None,
) -> TensorValue:
    shape = tuple(node.meta["val"].shape)
    windows = _pool_windows(node, size, stride, padding)
    count = _count(windows, x.shape[-len(windows) :], counts_padding, divisor, x.dtype.compute)
    source, name = filled(lowering, _batched(x, len(windows)), 0), f"k{len(lowering.ops)}"
    compute = x.dtype.compute

    def at(point: Coordinates) -> Expr:
        batch, channel, *place = point

        def element(tap: list[Index]) -> Expr:
            return cast(source.at((batch, channel, *positions(windows, place, tap))), compute)

        return cast(binary("div", _reduced(name, "sum", windows, element), count(place)), x.dtype)

    pooled = TensorValue((*source.shape[:2], *shape[-len(windows) :]), x.dtype, at, cost=_taps(windows))
    return reshaped(lowering.in_memory(pooled), shape)


def _pool_windows(
    node: Node, size: Numbers, stride: Numbers, padding: Numbers, dilation: Numbers = 1
) -> tuple[Window, ...]:
    rank = _image_rank(node)
    return windows_of(*(_each(value, rank) for value in (size, stride, padding, dilation)))


def _image_rank(node: Node) -> int:
    """The 2 of aten.avg_pool2d."""
    return int(str(node.target).split("_pool")[1][0])


def _taps(windows: Sequence[Window]) -> int:
    return prod(w.size for w in windows)


def _count(
    windows: Sequence[Window], image: Sequence[int], counts_padding: bool, divisor: int | None, dtype: DType
) -> Callable[[Sequence[Index]], Expr]:
    """What the sum of a point's window is divided by."""

    def at(place: Sequence[Index]) -> Expr:
        if divisor is not None:
            return constant_expr(divisor, dtype)
        counted: Expr = constant_expr(1, DType.I64)
        for o, window, extent in zip(place, windows, image, strict=True):
            pad = window.before if counts_padding else 0
            counted = _times(counted, _length(window.position(o, Index()), window.size, -pad, extent + pad))
        return cast(counted, dtype)

    return at


def _length(first: Index, size: int, low: int, high: int) -> Expr:
    """How many of `first`, ..., `first + size - 1` lie in [low, high)."""
    start, end = first.bounds()
    if start >= low and end + size <= high:
        return constant_expr(size, DType.I64)
    begins = binary("max", IndexValue(first), constant_expr(low, DType.I64))
    return binary("sub", binary("min", IndexValue(first + size), constant_expr(high, DType.I64)), begins)


def _times(a: Expr, b: Expr) -> Expr:
    if isinstance(a, Const) and isinstance(b, Const):
        return constant_expr(int(a.value) * int(b.value), DType.I64)
    return binary("mul", a, b)


@lowers(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default, unless=_over_nothing)
def lower_average_pool_backward(
    lowering: Lowering,
    node: Node,
    gradient: TensorValue,
    x: TensorValue,
    size: Numbers,
    stride: Numbers,
    padding: Numbers,
    _ceil_mode: bool,
    counts_padding: bool,
    divisor: int | None,
) -> TensorValue:
    windows = _pool_windows(node, size, stride, padding)
    count = _count(windows, x.shape[-len(windows) :], counts_padding, divisor, x.dtype.compute)
    batched = _batched(gradient, len(windows))

    def share(point: Coordinates) -> Expr:
        return binary("div", cast(batched.at(point), x.dtype.compute), count(point[2:]))

    shares = TensorValue(batched.shape, x.dtype.compute, share, cost=batched.cost + 1)
    source = filled(lowering, lowering.in_memory(shares), 0)
    return _gathered_back(lowering, node, x, windows, source.dtype, lambda _at, point: source.at(point))


def _gathered_back(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    windows: Sequence[Window],
    dtype: DType,
    passed: Callable[[Coordinates, Coordinates], Expr],
) -> TensorValue:
    """For each element of x the sum of `passed(element, point)` over the points whose windows look at it."""
    batched, name = _batched(x, len(windows)), f"k{len(lowering.ops)}"
    reverse = [w.mirrored() for w in windows]

    def at(element: Coordinates) -> Expr:
        def one(tap: list[Index]) -> Expr:
            apart = positions(reverse, element[2:], tap)
            point = (*element[:2], *(i // w.stride for i, w in zip(apart, windows, strict=True)))
            value = passed(element, point)
            for i, window in zip(apart, windows, strict=True):
                if window.stride > 1:
                    value = Where(is_multiple(i, window.stride), value, constant_expr(0, dtype))
            return value

        return cast(_reduced(name, "sum", reverse, one), x.dtype)

    total = TensorValue(batched.shape, x.dtype, at, cost=_taps(windows))
    return reshaped(lowering.in_memory(total), tuple(node.meta["val"].shape))


# ---- averages over windows of several sizes


@lowers(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default, unless=_over_nothing)
def lower_adaptive_average_pool(
    lowering: Lowering, node: Node, x: TensorValue, sizes: Sequence[int]
) -> TensorValue:
    """Point o of n averages elements from o * extent // n to (o + 1) * extent / n, rounded up."""
    rank, compute = len(sizes), x.dtype.compute
    source, name = filled(lowering, _batched(x, rank), 0), f"k{len(lowering.ops)}"
    extents = source.shape[2:]
    tap = tuple(
        Var(f"{name}_{d}", _widest(n, o)) for d, (n, o) in enumerate(zip(extents, sizes, strict=True))
    )

    def at(point: Coordinates) -> Expr:
        batch, channel, *place = point
        first = [o * n // m for o, n, m in zip(place, extents, sizes, strict=True)]
        ends = [((o + 1) * n + m - 1) // m for o, n, m in zip(place, extents, sizes, strict=True)]
        value = cast(source.at((batch, channel, *(f + v for f, v in zip(first, tap, strict=True)))), compute)
        count: Expr = constant_expr(1, compute)
        for f, end, v in zip(first, ends, tap, strict=True):
            value = _below(f + v, end, value, constant_expr(0, compute))
            count = binary("mul", count, cast(IndexValue(end - f), compute))
        return cast(binary("div", reduced("sum", tap, value), count), x.dtype)

    pooled = TensorValue((*source.shape[:2], *sizes), x.dtype, at, cost=prod(v.extent for v in tap))
    return reshaped(lowering.in_memory(pooled), tuple(node.meta["val"].shape))


def _widest(extent: int, points: int) -> int:
    """Elements of the largest window when `points` windows cover `extent` elements."""
    return max(-(-(o + 1) * extent // points) - o * extent // points for o in range(points))


def _below(i: Index, end: Index, value: Expr, other: Expr) -> Expr:
    """`value` where i < end, else `other`."""
    if (i - end).bounds()[1] < 0:
        return value
    return Where(binary("lt", IndexValue(i - end), constant_expr(0, DType.I64)), value, other)


# ---- maxima


@lowers(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default, unless=_over_nothing)
def lower_max_pool(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    dilation: Numbers = 1,
    _ceil_mode: bool = False,
) -> list[TensorValue]:
    """(largest of each window, its row-major position in the image)."""
    windows = _pool_windows(node, size, stride, padding, dilation)
    shape, lowest = tuple(node.meta["val"][0].shape), _lowest(x.dtype)
    source, name = filled(lowering, _batched(x, len(windows)), lowest), f"k{len(lowering.ops)}"
    pooled = (*source.shape[:2], *shape[-len(windows) :])

    def over_window(op: str, point: Coordinates) -> Expr:
        def element(tap: list[Index]) -> Expr:
            here = source.at((*point[:2], *positions(windows, point[2:], tap)))
            return cast(here, x.dtype.compute)

        return _reduced(f"{name}{op}", op, windows, element)

    largest = TensorValue(
        pooled, x.dtype, lambda at: cast(over_window("max", at), x.dtype), cost=_taps(windows)
    )
    best = lowering.in_memory(largest)

    def position(point: Coordinates) -> Expr:
        none = binary("eq", best.at(point), constant_expr(lowest, x.dtype))
        tap = over_window("argmax", point) if _taps(windows) > 1 else constant_expr(0, DType.I64)
        return _flat_position(windows, source.shape[2:], point[2:], tap, none)

    where = TensorValue(pooled, DType.I64, position, cost=_taps(windows))
    return [reshaped(best, shape), reshaped(lowering.in_memory(where), shape)]


def _lowest(dtype: DType) -> float | int:
    return float("-inf") if dtype.is_float else -(1 << (8 * dtype.bytes - 1)) * (dtype is not DType.U8)


def _flat_position(
    windows: Sequence[Window], image: Sequence[int], place: Sequence[Index], tap: Expr, none: Expr
) -> Expr:
    """The row-major position in the image of a tap of a window; of the first tap that is no padding where
    `none` of them was larger than padding.
    """
    found: Expr = constant_expr(0, DType.I64)
    sizes = tuple(w.size for w in windows)
    for window, o, extent, behind in zip(windows, place, image, contiguous_strides(sizes), strict=True):
        start = IndexValue(window.position(o, Index()))
        k = binary("mod", binary("floordiv", tap, _whole(behind)), _whole(window.size))
        k = Where(none, _first_inside(start, window.dilation), k)
        here = binary("add", start, binary("mul", k, _whole(window.dilation)))
        found = binary("add", binary("mul", found, _whole(extent)), here)
    return found


def _first_inside(start: Expr, dilation: int) -> Expr:
    """The first k with start + k * dilation >= 0."""
    missing = binary("sub", _whole(dilation - 1), start)
    return binary("max", binary("floordiv", missing, _whole(dilation)), _whole(0))


def _whole(value: int) -> Expr:
    return constant_expr(value, DType.I64)


@lowers(
    aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d_with_indices_backward.default,
    unless=_over_nothing,
)
def lower_max_pool_backward(
    lowering: Lowering,
    node: Node,
    gradient: TensorValue,
    x: TensorValue,
    size: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    _ceil_mode: bool,
    where: TensorValue,
) -> TensorValue:
    windows = _pool_windows(node, size, stride, padding, dilation)
    rank, compute = len(windows), x.dtype.compute
    found = filled(lowering, _batched(where, rank), -1)
    source = filled(lowering, _batched(gradient, rank), 0)
    strides = contiguous_strides(x.shape[-rank:])

    def passed(element: Coordinates, point: Coordinates) -> Expr:
        mine = binary("eq", found.at(point), IndexValue(linear(element[2:], strides)))
        return Where(mine, cast(source.at(point), compute), constant_expr(0, compute))

    return _gathered_back(lowering, node, x, windows, compute, passed)


# ---- nearest neighbours


def _no_whole_steps(node: Node) -> str | None:
    nearest = _nearest_of(node)
    return None if nearest else "a scale whose nearest neighbours are no whole steps apart"


def _nearest_of(node: Node) -> list[tuple[int, int]] | None:
    """(numerator, denominator) a dimension: result point o is source element o * numerator // denominator."""
    source, result = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    scales = node.args[2:] if str(node.target).endswith("default") else ()
    ratios = []
    for d, (extent, points) in enumerate(zip(source.shape[2:], result.shape[2:], strict=True)):
        given = scales[d] if d < len(scales) else None
        eager = torch.nn.functional.interpolate  # the oracle of the rounding that eager does
        line = torch.arange(extent, dtype=torch.float32).reshape(1, 1, extent)
        if given is not None and (given * extent) != points:
            return None
        expected = eager(line, size=points, mode="nearest").flatten().to(torch.int64).tolist()
        if expected != [o * extent // points for o in range(points)]:
            return None
        ratios.append((extent, points))
    return ratios


@lowers(
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    unless=_no_whole_steps,
)
def lower_nearest(_: Lowering, node: Node, x: TensorValue, *_sizes: object) -> TensorValue:
    ratios = _nearest_of(node)
    assert ratios is not None, node

    def to_source(at: Coordinates) -> Coordinates:
        return *at[:2], *(o * n // m for o, (n, m) in zip(at[2:], ratios, strict=True))

    return reindexed(x, tuple(node.meta["val"].shape), to_source)
