"""Convolutions of any number of dimensions as implicit GEMMs: sums over taps and channels of a product.

Memory is laid out channels last: vectors run along the channels of the result, whatever the shape of the
image, and weights are copied once a call to the order in which such vectors are read. The reduction walks the
channels fastest, so that a tap's place is found once for all of them. A transposed convolution is one over
an input whose elements stand `stride` apart; gradients are both kinds again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch.fx import Node

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.matmul import kept
from wolong_fx.codegen.lower.reductions import reduction, settled_like
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import (
    DTYPES,
    Coordinates,
    TensorValue,
    binary,
    cast,
    constant,
    reduced,
    reindexed,
)
from wolong_fx.codegen.lower.windows import (
    Window,
    bordered,
    filled,
    positions,
    spread_apart,
    taps,
    windows_of,
)
from wolong_fx.ir.expr import Expr
from wolong_fx.ir.index import Index, Var

aten = torch.ops.aten

LEAST_POINTS = 8
"""Points of a result for whose sake weights are copied; for fewer they are read where they are."""


def _why_not(node: Node) -> str | None:
    values = [n.meta["val"] for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if any(value.dim() > 1 and 0 in value.shape[1:] for value in values):
        return "a convolution of nothing, which torch treats by itself"
    return None


@lowers(aten.convolution.default, unless=_why_not)
def lower_convolution(
    lowering: Lowering,
    node: Node,
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
) -> TensorValue:
    shape = tuple(node.meta["val"].shape)
    windows = windows_of(weight.shape[2:], stride, padding, dilation)
    compute = transposed_convolution if transposed else convolution
    return lowering.in_memory(compute(lowering, x, weight, windows, groups, shape, bias), channels_last=True)


def convolution(
    lowering: Lowering,
    x: TensorValue,
    weight: TensorValue,
    windows: Sequence[Window],
    groups: int,
    shape: tuple[int, ...],
    bias: TensorValue | None = None,
) -> TensorValue:
    """The convolution of x (N, C, *image) with weight (D, C / groups, *taps), of `shape` (N, D, *points), not
    yet in memory; accumulated and the bias added in the compute type, rounded once.
    """
    if 0 in shape:
        return constant(0, x.dtype, shape)
    inside, outside = weight.shape[1], weight.shape[0] // groups
    x = lowering.in_memory(x, channels_last=inside > 1 or groups > 1)
    if inside > 1:
        x, windows = bordered(lowering, x, windows, shape[2:])
    else:
        x = filled(lowering, x, 0)
    weight = _lanes_last(lowering, weight, prod(shape) // shape[1])
    tap, channel = taps(windows, f"k{len(lowering.ops)}"), Var(f"k{len(lowering.ops)}_c", inside)
    at_tap, at_channel = [Index.of(v) for v in tap], Index.of(channel)
    compute = x.dtype.compute

    def at(point: Coordinates) -> Expr:
        batch, result, *place = point
        source = (batch, result // outside * inside + at_channel, *positions(windows, place, at_tap))
        factors = x.at(source), weight.at((result, at_channel, *at_tap))
        total = reduced("sum", (*tap, channel), binary("mul", *(cast(f, compute) for f in factors)))
        if bias is not None:
            total = binary("add", total, cast(bias.at((result,)), compute))
        return cast(total, x.dtype)

    return TensorValue(shape, x.dtype, at, cost=2 * prod(weight.shape[1:]))


def transposed_convolution(
    lowering: Lowering,
    x: TensorValue,
    weight: TensorValue,
    windows: Sequence[Window],
    groups: int,
    shape: tuple[int, ...],
    bias: TensorValue | None = None,
) -> TensorValue:
    """The transposed convolution of x (N, D, *points) with weight (D, C / groups, *taps), of `shape`
    (N, C, *image): an ordinary one with turned weights over x spread apart.
    """
    if 0 in shape:
        return constant(0, x.dtype, shape)
    apart = spread_apart(lowering, x, [w.stride for w in windows])
    turned = _turned(weight, groups)
    return convolution(lowering, apart, turned, [w.mirrored() for w in windows], groups, shape, bias)


def _turned(weight: TensorValue, groups: int) -> TensorValue:
    """(D, C / groups, *taps) as (C, D / groups, *taps), the taps from last to first."""
    outside, inside = weight.shape[0] // groups, weight.shape[1]

    def to_source(at: Coordinates) -> Coordinates:
        channel, other, *tap = at
        last = (n - 1 - k for n, k in zip(weight.shape[2:], tap, strict=True))
        return channel // inside * outside + other, channel % inside, *last

    return reindexed(weight, (groups * inside, outside, *weight.shape[2:]), to_source)


def _lanes_last(lowering: Lowering, weight: TensorValue, points: int) -> TensorValue:
    """Weights (D, C, *taps) copied to the memory order (*taps, C, D), if enough points share the copy."""
    if points < LEAST_POINTS:
        return lowering.realised(weight)
    rank = weight.rank
    shape = (*weight.shape[2:], weight.shape[1], weight.shape[0])
    ordered = reindexed(weight, shape, lambda at: (at[rank - 1], at[rank - 2], *at[: rank - 2]))
    copy = lowering.once(weight, "lanes last", lambda: kept(lowering, ordered))
    return _taps_first(copy, weight.shape)


def _taps_first(ordered: TensorValue, shape: tuple[int, ...]) -> TensorValue:
    """Weights of `shape` (D, C, *taps) that lie in memory as (*taps, C, D)."""
    return reindexed(ordered, shape, lambda at: (*at[2:], at[1], at[0]))


# ---- gradients


@lowers(aten.convolution_backward.default, unless=_why_not)
def lower_convolution_backward(
    lowering: Lowering,
    node: Node,
    gradient: TensorValue,
    x: TensorValue,
    weight: TensorValue,
    _bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> list[TensorValue | None]:
    windows = windows_of(weight.shape[2:], stride, padding, dilation)
    gradient = lowering.in_memory(gradient, channels_last=True)
    results: list[TensorValue | None] = [None, None, None]
    if wanted[0]:
        compute = convolution if transposed else transposed_convolution
        to_x = compute(lowering, gradient, weight, windows, groups, x.shape)
        results[0] = lowering.in_memory(to_x, channels_last=True)
    if wanted[1]:
        image, points = (gradient, x) if transposed else (x, gradient)
        results[1] = _to_weight(lowering, image, points, weight.shape, windows, groups)
    if wanted[2]:
        results[2] = _to_bias(lowering, node, gradient)
    return results


def _to_weight(
    lowering: Lowering,
    image: TensorValue,
    points: TensorValue,
    shape: tuple[int, ...],
    windows: Sequence[Window],
    groups: int,
) -> TensorValue:
    """The weights' gradient (D, C / groups, *taps): at every tap the product of what the result's points
    (N, D, *points) and the taps of the image (N, C, *image) hold, summed over all points.
    """
    if 0 in points.shape:
        return constant(0, points.dtype, shape)
    outside, inside = shape[0] // groups, shape[1]
    points = lowering.in_memory(points, channels_last=True)
    image = lowering.in_memory(image, channels_last=True)
    image, windows = bordered(lowering, image, windows, points.shape[2:])
    spaces = (points.shape[0], *points.shape[2:])
    every = tuple(Var(f"k{len(lowering.ops)}_{d}", n) for d, n in enumerate(spaces))
    batch, *place = (Index.of(v) for v in every)
    compute = points.dtype.compute

    def at(point: Coordinates) -> Expr:
        *tap, channel, result = point
        source = (batch, result // outside * inside + channel, *positions(windows, place, tap))
        factors = points.at((batch, result, *place)), image.at(source)
        total = reduced("sum", every, binary("mul", *(cast(f, compute) for f in factors)))
        return cast(total, points.dtype)

    ordered = TensorValue((*shape[2:], inside, shape[0]), points.dtype, at, cost=2 * prod(spaces))
    return _taps_first(kept(lowering, ordered), shape)


def _to_bias(lowering: Lowering, node: Node, gradient: TensorValue) -> TensorValue:
    """The bias's gradient: the sum of all points of a channel."""
    like = node.meta["val"][2]
    dims = (0, *range(2, gradient.rank))
    return settled_like(
        lowering, reduction(lowering, "sum", gradient, dims, DTYPES[like.dtype].compute), like
    )
