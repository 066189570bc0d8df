"""Sliding windows: which elements of a tensor a point of a convolution's or a pooling's result looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.value import (
    Coordinates,
    TensorValue,
    binary,
    constant_expr,
    reindexed,
)
from wolong_fx.ir.expr import Access, Expr, IndexValue, Load, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.types import DType


@dataclass(frozen=True)
class Window:
    """A window along one dimension: point `o` of the result looks at `o * stride + k * dilation - before`,
    for every k below `size`.
    """

    size: int
    stride: int = 1
    before: int = 0
    dilation: int = 1

    def position(self, o: Index, k: Index) -> Index:
        """Where tap `k` of the window of point `o` stands; outside of the tensor in its padding."""
        return o * self.stride + k * self.dilation - self.before

    def reaches(self, points: int) -> int:
        """Elements from the first to the last that the windows of `points` points look at."""
        return (points - 1) * self.stride + (self.size - 1) * self.dilation + 1

    def is_inside(self, points: int, extent: int) -> bool:
        """Whether no window of `points` points leaves a dimension of `extent`."""
        return self.before <= 0 and self.reaches(points) - self.before <= extent

    def mirrored(self) -> Window:
        """The window of the reverse: which points, spread `stride` apart, look at an element."""
        return Window(self.size, 1, self.dilation * (self.size - 1) - self.before, self.dilation)


def windows_of(
    sizes: Sequence[int], strides: Sequence[int], paddings: Sequence[int], dilations: Sequence[int] = (1,)
) -> tuple[Window, ...]:
    """A window a dimension; ATen writes one number for all, or nothing for strides as large as the window."""
    rank = len(sizes)
    options = (strides or sizes, paddings, dilations)
    spread = [tuple(values) * (1 if len(values) == rank else rank) for values in options]
    return tuple(map(Window, sizes, *spread))


def taps(windows: Sequence[Window], name: str) -> tuple[Var, ...]:
    """A variable for each window, over its taps."""
    return tuple(Var(f"{name}_{d}", w.size) for d, w in enumerate(windows))


def positions(windows: Sequence[Window], at: Sequence[Index], tap: Sequence[Index]) -> Coordinates:
    """Window.position in every dimension."""
    return tuple(w.position(o, k) for w, o, k in zip(windows, at, tap, strict=True))


def filled(lowering: Lowering, x: TensorValue, fill: float | int | bool) -> TensorValue:
    """`x` in memory, and `fill` wherever else it is read."""
    buffer = lowering.as_buffer(x)
    fill = constant_expr(fill, x.dtype).value
    return TensorValue(x.shape, x.dtype, lambda at: Load(Access(buffer, at), fill), cost=1)


def bordered(
    lowering: Lowering, x: TensorValue, windows: Sequence[Window], points: Sequence[int]
) -> tuple[TensorValue, tuple[Window, ...]]:
    """A copy of `x` with as many zeros around it as windows of `points` points reach, and the windows in it.

    What reads an element many times over asks for its place only once: in the copy.
    """
    if all(w.is_inside(o, n) for w, o, n in zip(windows, points, x.shape[2:], strict=True)):
        return x, tuple(windows)
    shape = (*x.shape[:2], *(w.reaches(o) for w, o in zip(windows, points, strict=True)))
    source = filled(lowering, x, 0)

    def to_source(at: Coordinates) -> Coordinates:
        return *at[:2], *(i - w.before for i, w in zip(at[2:], windows, strict=True))

    border = shape, tuple(w.before for w in windows)
    copy = lowering.once(x, border, lambda: lowering.in_memory(reindexed(source, shape, to_source)))
    return copy, tuple(Window(w.size, w.stride, 0, w.dilation) for w in windows)


def spread_apart(lowering: Lowering, x: TensorValue, steps: Sequence[int]) -> TensorValue:
    """`x` with its elements `steps[d]` apart along dimension d + 2, zeros between, in memory."""
    if all(step == 1 for step in steps):
        return x
    source = filled(lowering, x, 0)
    shape = (*x.shape[:2], *((n - 1) * step + 1 for n, step in zip(x.shape[2:], steps, strict=True)))

    def at(point: Coordinates) -> Expr:
        value = source.at((*point[:2], *(i // s for i, s in zip(point[2:], steps, strict=True))))
        zero = constant_expr(0, x.dtype)
        for i, step in zip(point[2:], steps, strict=True):
            value = Where(is_multiple(i, step), value, zero) if step > 1 else value
        return value

    return lowering.in_memory(TensorValue(shape, x.dtype, at, cost=2))


def is_multiple(i: Index, of: int) -> Expr:
    """Whether an index is a multiple of a number."""
    return binary("eq", IndexValue(i % of), constant_expr(0, DType.I64))
