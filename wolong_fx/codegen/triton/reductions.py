"""Reductions as Triton text: steps over chunks of the reduced positions, or matrix products on tensor
cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from wolong_fx.codegen.analysis import Analysis
from wolong_fx.codegen.triton.names import Names
from wolong_fx.codegen.triton.pointwise import REGISTER_TYPES, STORAGE_TYPES, Value, const_value, rounded
from wolong_fx.codegen.triton.scope import Axis, Scope, subscript
from wolong_fx.ir.expr import Binary, Cast, Expr, Load, Reduce
from wolong_fx.ir.index import Index, Var, delinearise
from wolong_fx.ir.types import DType

CHUNK = 4096
"""Elements of a tile with its reduced axis: 32 registers of each of 128 threads."""

ACCUMULATED = 1 << 13
"""The same of all reductions of one loop together."""

WHOLE = 1 << 14
"""The same where one factor of a sum of products is kept in registers: products are added up as they are
made, and need few of their own."""

SMALLEST_DOT = 16
"""Extents below which a product of matrices is no work for tensor cores."""

DOT_STEP = 32
"""Reduced positions that one step of a matrix product takes."""

WHOLE_DOT = 512
"""The same where the block keeps a factor in registers."""

COMBINE = {
    "sum": "add",
    "prod": "multiply",
    "max": "maximum",
    "min": "minimum",
    "any": "either",
    "all": "both",
    "argmax": "first_largest",
    "argmin": "first_smallest",
}
_BITS = {DType.I64: 63, DType.I32: 31, DType.I16: 15, DType.I8: 7}

ValuesText = Callable[[Sequence[Expr], Scope], list[Value]]


@dataclass(frozen=True)
class Dot:
    """A sum of products as a product of matrices: `left` varies along the rows, `right` along the lanes."""

    left: Expr
    right: Expr


class ReductionText:
    """Emits the reductions of one operator, those over the same positions in one loop.

    precision: of float32 products on tensor cores, "ieee" or "tf32"
    is_kept: whether the block keeps a factor, and should therefore take all positions at once
    """

    def __init__(
        self, analysis: Analysis, names: Names, values: ValuesText, precision: str, is_kept: bool
    ) -> None:
        self.analysis, self.names, self.values, self.precision = analysis, names, values, precision
        self.is_kept = is_kept
        self.chunk, self.dot_step = (WHOLE, WHOLE_DOT) if is_kept else (CHUNK, DOT_STEP)

    def reduce(self, node: Reduce, scope: Scope) -> None:
        """Give the reduction, and those that can share its loop, a value in the scope."""
        extent = _extent(node)
        if not extent:
            scope.values[id(node)] = const_value(_identity(node), node.dtype)
            return
        group = [node, *self._companions(node, scope)]
        if self.find_dot(node, scope):
            self._dots(group, extent, scope)
        else:
            self._steps(group, extent, scope)

    # ---- what belongs together

    def _companions(self, node: Reduce, scope: Scope) -> list[Reduce]:
        """Reductions over as many positions that could be computed now, in the same way."""
        is_dot = self.find_dot(node, scope) is not None
        return [
            other
            for other in self.analysis.nodes
            if isinstance(other, Reduce)
            and other is not node
            and _extent(other) == _extent(node)
            and scope.find(id(other)) is None
            and scope.home(self.analysis.free[id(other)] & self.analysis.bound) is scope
            and (self.find_dot(other, scope) is not None) == is_dot
            and self._is_ready(other, scope)
        ]

    def _is_ready(self, node: Reduce, scope: Scope) -> bool:
        """Whether the reductions below that stand in this scope have values."""
        stack: list[Expr] = [node.body]
        seen: set[int] = set()
        while stack:
            below = stack.pop()
            if id(below) in seen or scope.find(id(below)) is not None:
                continue
            seen.add(id(below))
            inner = self.analysis.free[id(below)] & self.analysis.bound
            if isinstance(below, Reduce) and not inner & frozenset(node.over):
                return False
            stack += below.args
        return True

    def find_dot(self, node: Reduce, scope: Scope) -> Dot | None:
        """The factors of a sum of products that tensor cores can take."""
        body = node.body
        if (
            node.op != "sum"
            or not isinstance(body, Binary)
            or body.op != "mul"
            or body.dtype is not DType.F32
        ):
            return None
        if scope.parent is not None or len(scope.axes) != 2 or _extent(node) < SMALLEST_DOT:
            return None
        if min(axis.size for axis in scope.axes) < SMALLEST_DOT:
            return None
        row, lane = (axis.at for axis in scope.axes)
        along = [scope.axes_below(self.analysis.free[id(x)]) for x in (body.a, body.b)]
        for (left, right), (of_left, of_right) in zip(
            ((body.a, body.b), (body.b, body.a)), (along, along[::-1]), strict=True
        ):
            if of_left <= {row} and of_right <= {lane}:
                return Dot(left, right)
        return None

    # ---- steps over chunks

    def _steps(self, group: list[Reduce], extent: int, scope: Scope) -> None:
        chunk = self.chunk if self.is_kept else min(self.chunk, ACCUMULATED // len(group))
        room = max(1, chunk // prod(axis.size for axis in scope.axes))
        size = min(_power_of_two(extent), 1 << (room.bit_length() - 1))
        at = Var(self.names.fresh("k"), extent)
        child = self._child(group, at, size, scope)
        bodies = self.values([node.body for node in group], child)
        along = child.axes[len(scope.axes) :]
        accumulators = [
            self._accumulate(node, body, child, along) for node, body in zip(group, bodies, strict=True)
        ]
        for name, start in (pair for acc in accumulators for pair in acc.starts):
            scope.lines.append(f"{name} = {start}")
        scope.lines += _loop(child, at, size)
        for node, acc in zip(group, accumulators, strict=True):
            self._finish(node, acc, bool(along), scope)

    def _child(self, group: list[Reduce], at: Var, size: int, scope: Scope) -> Scope:
        """A scope with the reduced positions as a last axis, or, one at a time, without."""
        env = {**scope.env, **_flat_env(group, at)}
        bound = scope.bound.union(*(node.over for node in group))
        if size == 1:
            return Scope(scope.axes, env, bound, scope, is_wide=scope.is_wide, head=None)
        mask = f"m_{at.name}" if at.extent % size else None
        lift = "[" + ":, " * len(scope.axes) + "None]"
        axis = Axis(at, size, at.name, mask)
        axes = (*(axis.lifted(lift) for axis in scope.axes), axis)
        is_whole = size >= at.extent and scope.head is not None
        head = (*(scope.head or ()), *_positions(axis, len(axes) - 1, len(axes), "")) if is_whole else None
        return Scope(axes, env, bound, scope, lift, scope.is_wide, head)

    def _accumulate(self, node: Reduce, body: Value, child: Scope, along: tuple[Axis, ...]) -> _Accumulator:
        """Combine a body with what was accumulated, and say what that starts from."""
        axes = body.axes | {axis.at for axis in along}
        text = body.text
        kind = _kind(node)
        if node.body.dtype is DType.BOOL:
            text = f"{text}.to({kind})"
        for axis in along:
            if axis.mask:
                text = f"tl.where({axis.mask}, {text}, {_identity_text(node)})"
        full = child.shape(axes) if body.rank or along else "()"
        if self.is_kept and child.head is not None and node.op == "sum":
            spread = text if body.axes == axes else f"tl.broadcast_to({text}, {full})"
            return _Accumulator(child.name_of(spread, self.names), (), body)
        name = self.names.fresh("a")
        start = f"tl.full({full}, {_identity_text(node)}, {kind})"
        combine = COMBINE[node.op]
        if node.op in ("argmax", "argmin"):
            place = f"{name}_at"
            position = f"({self._flat_position(node, child)}) + tl.full({full}, 0, tl.int64)"
            if any(axis.mask for axis in along):
                position = f"tl.where({along[0].mask}, {position}, {_extent(node)})"
            child.lines.append(f"{name}, {place} = {combine}({name}, {place}, {text}, {position})")
            far = f"tl.full({full}, {_extent(node)}, tl.int64)"
            return _Accumulator(name, ((name, start), (place, far)), body)
        child.lines.append(f"{name} = {combine}({name}, {text})")
        return _Accumulator(name, ((name, start),), body)

    def _flat_position(self, node: Reduce, child: Scope) -> str:
        """The row-major position over the reduction's variables."""
        flat = Index()
        for var in node.over:
            flat = flat * var.extent + Index.of(var)
        return child.index_text(flat.substitute(child.env))

    def _finish(self, node: Reduce, acc: _Accumulator, is_along: bool, scope: Scope) -> None:
        """What was accumulated along the last axis, combined into the reduction's value."""
        name, axis, combine = self.names.fresh("r"), len(scope.axes), COMBINE[node.op]
        body = acc.body
        axes = body.axes & {a.at for a in scope.axes}
        rank = len(scope.axes) if is_along or body.rank else 0
        if node.op in ("argmax", "argmin"):
            at = f"{acc.name}_at"
            if is_along:
                scope.lines.append(f"_, {name} = tl.reduce(({acc.name}, {at}), {axis}, {combine})")
            else:
                scope.lines.append(f"{name} = {at}")
        elif not is_along:
            scope.lines.append(f"{name} = {rounded(acc.name, node.dtype)}")
        else:
            whole = (
                f"tl.sum({acc.name}, {axis})"
                if node.op == "sum"
                else f"tl.reduce({acc.name}, {axis}, {combine})"
            )
            scope.lines.append(f"{name} = {rounded(whole, node.dtype)}")
        if node.body.dtype is DType.BOOL and node.dtype is DType.BOOL:
            scope.lines.append(f"{name} = {name} != 0")
        scope.values[id(node)] = Value(name, node.dtype, axes, rank)

    # ---- matrix products

    def _dots(self, group: list[Reduce], extent: int, scope: Scope) -> None:
        row, lane = scope.axes
        at = self.names.fresh("k")
        size = min(_power_of_two(extent), self.dot_step)
        left = self._side(group, Var(f"{at}_row", extent), size, 1, scope)
        right = self._side(group, Var(f"{at}_lane", extent), size, 0, scope)
        products = []
        for node in group:
            dot = self.find_dot(node, scope)
            assert dot is not None
            acc = self.names.fresh("a")
            a, b = self._factor(dot.left, left), self._factor(dot.right, right)
            scope.lines.append(f"{acc} = tl.zeros(({row.size}, {lane.size}), tl.float32)")
            products.append(f'{acc} = tl.dot({a}, {b}, {acc}, input_precision="{self.precision}")')
            scope.values[id(node)] = Value(acc, node.dtype, frozenset((row.at, lane.at)), 2)
        is_whole = size >= extent
        start = "" if is_whole else f"{at} + "
        steps = [
            *(*_positions(left.axes[1], 1, 2, start), *left.lines),
            *(*_positions(right.axes[0], 0, 2, start), *right.lines),
            *products,
        ]
        if is_whole:
            scope.lines += steps
        else:
            scope.lines.append(f"for {at} in range(0, {extent}, {size}):")
            scope.lines += ["    " + line for line in steps]

    def _side(self, group: list[Reduce], at: Var, size: int, where: int, scope: Scope) -> Scope:
        """The scope of a factor, whose axis number `where` is the reduced positions."""
        axis = Axis(at, size, at.name, f"m_{at.name}" if at.extent % size else None)
        row, lane = scope.axes
        axes = (row, axis) if where else (axis, lane)
        env = {**scope.env, **_flat_env(group, at)}
        bound = scope.bound.union(*(node.over for node in group))
        head = tuple(_positions(axis, where, 2, "")) if size >= at.extent else None
        return Scope(axes, env, bound, scope, is_wide=scope.is_wide, head=head)

    def _factor(self, factor: Expr, side: Scope) -> str:
        """A factor as a matrix, in the narrowest type that holds it, 0 where there is nothing."""
        narrow = (
            factor.x if isinstance(factor, Cast) and factor.x.dtype in (DType.BF16, DType.F16) else factor
        )
        value = self.values([narrow], side)[0]
        text, everywhere = value.text, frozenset(axis.at for axis in side.axes)
        if narrow is not factor:
            text = f"{text}.to({STORAGE_TYPES[narrow.dtype]})"
        if value.axes != everywhere:
            text = f"tl.broadcast_to({text}, {side.shape(everywhere)})"
        masks = side.mask(everywhere)
        is_masked_already = isinstance(narrow, Load) and value.axes == everywhere and not narrow.fill
        if masks and not is_masked_already:
            text = f"tl.where({' & '.join(masks)}, {text}, 0)"
        return text if text == value.text else side.name_of(text, self.names)


@dataclass(frozen=True)
class _Accumulator:
    """Names that a loop carries, and the expressions that they start from."""

    name: str
    starts: tuple[tuple[str, str], ...]
    body: Value


def _loop(child: Scope, at: Var, size: int) -> list[str]:
    """The child's statements for every chunk of positions."""
    if size == 1:
        return [f"for {at.name} in range({at.extent}):", *("    " + line for line in child.lines)]
    axis, rank = child.axes[-1], len(child.axes)
    is_whole = size >= at.extent
    lines = [*_positions(axis, rank - 1, rank, "" if is_whole else f"{at.name}_0 + "), *child.lines]
    if is_whole:
        return lines
    return [f"for {at.name}_0 in range(0, {at.extent}, {size}):", *("    " + line for line in lines)]


def _positions(axis: Axis, number: int, rank: int, start: str) -> list[str]:
    """Statements that define the positions along an axis, and which of them are there.

    start: text of the first one, followed by a plus, or nothing
    """
    lines = [f"{axis.name} = {start}tl.arange(0, {axis.size}){subscript(number, rank)}"]
    return lines + ([f"{axis.mask} = {axis.name} < {axis.at.extent}"] if axis.mask else [])


def _extent(node: Reduce) -> int:
    return prod(var.extent for var in node.over)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _flat_env(group: Sequence[Reduce], at: Var) -> dict[Var, Index]:
    """Every reduction's variables, of one flat position."""
    found: dict[Var, Index] = {}
    for node in group:
        shape = tuple(var.extent for var in node.over)
        found |= dict(zip(node.over, delinearise(Index.of(at), shape), strict=True))
    return found


def _kind(node: Reduce) -> str:
    """The type that is accumulated in."""
    return "tl.int32" if node.body.dtype is DType.BOOL else REGISTER_TYPES[node.body.dtype]


def _identity(node: Reduce) -> float | int | bool:
    """What leaves everything that it is combined with as it is."""
    dtype, op = node.body.dtype, node.op
    if op in ("sum", "any"):
        return 0
    if op in ("prod", "all"):
        return 1
    is_lowest = op in ("max", "argmax")
    if dtype.is_float:
        return -math.inf if is_lowest else math.inf
    if dtype is DType.BOOL:
        return int(not is_lowest)
    if dtype is DType.U8:
        return 0 if is_lowest else 255
    return -(1 << _BITS[dtype]) if is_lowest else (1 << _BITS[dtype]) - 1


def _identity_text(node: Reduce) -> str:
    value = _identity(node)
    return f'float("{value}")' if isinstance(value, float) else str(value)
