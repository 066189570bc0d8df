"""The tile function of an operator: Triton code that runs one of its virtual blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wolong_fx.codegen.analysis import Analysis, operands_first
from wolong_fx.codegen.signature import Bindings
from wolong_fx.codegen.triton.keep import NOTHING, Kept
from wolong_fx.codegen.triton.kept_text import LEAVES, KeptText
from wolong_fx.codegen.triton.memory import MemoryText
from wolong_fx.codegen.triton.names import Names, NumberCheck
from wolong_fx.codegen.triton.pointwise import (
    Value,
    binary_text,
    cast_text,
    const_value,
    unary_text,
    where_text,
)
from wolong_fx.codegen.triton.reductions import ReductionText
from wolong_fx.codegen.triton.scope import Axis, Scope, subscript
from wolong_fx.ir.expr import Binary, Cast, Const, Expr, IndexValue, Load, Reduce, Unary, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import DType

LARGE = 1 << 31
"""Elements of a buffer whose offsets need 64 bits."""

FAILURE = "failure"
"""Name of the parameter that points to the failure word."""

DIVISIONS = frozenset("floordiv truncdiv mod fmod".split())
DIVISION_BY_ZERO = "ZeroDivisionError"
"""Message of the check of every integer division, as torch words it."""


@dataclass(frozen=True)
class TileFunction:
    """Finished text.

    parameters: names of what it takes behind the block: pointers p0.., variables of the loops around t0..,
        the failure word, what is kept, and whether this is the last trip
    kept, states: names of what the block keeps, and of those that change, which the function returns
    fill: what it takes of them to fill what is kept, behind the block; None if nothing is
    """

    name: str
    text: str
    parameters: tuple[str, ...]
    kept: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    fill: tuple[str, ...] | None = None

    @property
    def fill_name(self) -> str:
        return f"{self.name}_keep"


class TileFunctionText:
    """Writes one tile function.

    Names in the text: p0.. pointers; b the block, b0.. its position along each dimension; x0.. points of the
    domain, m0.. which of them exist; k0.. positions of reductions; t0.. variables of the loops around; a0..
    accumulators; r0.. results of reductions; v0.. values; g0.. conditions; w0.. what is kept and stays, s0..
    what is kept and changes.
    """

    def __init__(
        self,
        name: str,
        op: OpInst,
        bindings: Bindings,
        loop_depth: Mapping[Var, int],
        number_check: NumberCheck,
        precision: str,
        kept: Kept = NOTHING,
    ) -> None:
        self.name, self.op, self.bindings = name, op, bindings
        self.loops = {v: Var(f"t{depth}", v.extent) for v, depth in loop_depth.items()}
        self.analysis = Analysis(op)
        self.names = Names()
        self.keep = KeptText(op, kept)
        self.memory = MemoryText(bindings, self.names, number_check, self.keep)
        keeps_factor = any(self.analysis.free[at] & self.analysis.bound for at in self.keep.wanted)
        self.reductions = ReductionText(self.analysis, self.names, self.values, precision, keeps_factor)

    def write(self) -> TileFunction:
        positions, scope = self._positions()
        roots = [s.value for s in self.op.stores] + [
            g.value for s in self.op.stores for g in s.access.gathers
        ]
        self.values(roots, scope)
        stores = [line for s in self.op.stores for line in self.memory.store(s, _of(scope, s.value), scope)]
        body = [*positions, *scope.lines, *stores]
        if any(dim.sequential for dim in self.op.dims):
            body = self._in_order(positions, [*scope.lines, *stores])
        return self._with_fill(positions, body) if self.keep.names else self._alone(body)

    def _alone(self, body: Sequence[str]) -> TileFunction:
        parameters = self._parameters(body)
        return TileFunction(self.name, _function(self.name, parameters, body), parameters)

    def _with_fill(self, positions: Sequence[str], body: Sequence[str]) -> TileFunction:
        """The function, and one that fills what it wants to be kept."""
        names, states = self.keep.names, tuple(self.keep.states.values())
        fills = [*positions, *self.keep.lines(), f"return {', '.join(names)}"]
        steps = [*body, f"return {', '.join(states)}"] if states else body
        fill, parameters = self._parameters(fills), (*self._parameters(steps), *names)
        if states:
            parameters += (LEAVES,)
        function = TileFunction(self.name, "", parameters, names, states, fill)
        texts = _function(function.fill_name, fill, fills), _function(self.name, parameters, steps)
        return replace(function, text="\n\n".join(texts))

    def _parameters(self, body: Sequence[str]) -> tuple[str, ...]:
        """Which pointers, variables of loops and words a body uses."""
        used = set(re.findall(r"[a-z]\w*", "\n".join(body)))
        pointers = (f"p{i}" for i in range(len(self.bindings.pointers)))
        return tuple(n for n in (*pointers, *(f"t{d}" for d in range(len(self.loops))), FAILURE) if n in used)

    # ---- the points of a block

    def _positions(self) -> tuple[list[str], Scope]:
        """Statements that define a block's points, and the scope of values at them."""
        lines: list[str] = []
        tiled = [
            i for i, d in enumerate(self.op.dims) if not d.sequential and min(d.extent, self.op.tile[i]) > 1
        ]
        axes, env, stride = [], {v: Index.of(at) for v, at in self.loops.items()}, 1
        for i in reversed(range(len(self.op.dims))):
            dim, blocks = self.op.dims[i], self.op.grid[i]
            at = Var(f"x{i}", dim.extent)
            env[dim.var] = Index.of(at)
            if dim.extent <= 1 or dim.sequential:
                continue
            if blocks > 1:
                lines.append(f"b{i} = {self._block_position(stride, blocks)}")
            stride *= blocks
            if i in tiled:
                axes.insert(0, self._axis(i, at, tiled, lines))
            else:
                lines.append(f"x{i} = b{i}")
        is_wide = any(p.buffer.span_bytes >= LARGE * p.buffer.dtype.bytes for p in self.bindings.pointers)
        if is_wide:
            lines.append("wide = tl.full((), 0, tl.int64)")
        return lines, Scope(tuple(axes), env, is_wide=is_wide)

    def _block_position(self, stride: int, blocks: int) -> str:
        at = "b" if stride == 1 else f"b // {stride}"
        return at if stride * blocks == self.op.virtual_blocks else f"({at}) % {blocks}"

    def _axis(self, i: int, at: Var, tiled: Sequence[int], lines: list[str]) -> Axis:
        """Define the positions along a dimension that the tile is wide in."""
        tile, extent, blocks = self.op.tile[i], self.op.dims[i].extent, self.op.grid[i]
        size = 1 << (min(tile, extent) - 1).bit_length()
        lanes = f"tl.arange(0, {size}){subscript(tiled.index(i), len(tiled))}"
        lines.append(f"x{i} = {lanes}" if blocks == 1 else f"x{i} = b{i} * {tile} + {lanes}")
        tests = []
        if blocks > 1 and size > tile:
            tests.append(f"(x{i} < b{i} * {tile} + {tile})")
        if blocks * tile > extent or (blocks == 1 and size > extent):
            tests.append(f"(x{i} < {extent})")
        if tests:
            lines.append(f"m{i} = {' & '.join(tests)}")
        return Axis(at, size, at.name, f"m{i}" if tests else None)

    def _in_order(self, positions: list[str], body: list[str]) -> list[str]:
        """The body at every point of the sequential dimensions, one after another; a step sees what the ones
        before it stored, whichever thread did.
        """
        lines = [*body, "tl.debug_barrier()"]
        for i in reversed([i for i, d in enumerate(self.op.dims) if d.sequential]):
            if self.op.dims[i].extent > 1:
                loop = f"for x{i} in range({self.op.dims[i].extent}):"
                lines = [loop, *("    " + line for line in lines)]
        return [*positions, *lines]

    # ---- values

    def values(self, roots: Sequence[Expr], scope: Scope) -> list[Value]:
        """Values of some expressions, each computed in the outermost scope that it can be computed in."""
        for node in _operands_first(roots, scope):
            home = scope.home(self.analysis.free[id(node)] & self.analysis.bound)
            if home.find(id(node)) is None:
                self._define(node, home)
        return [_of(scope, root) for root in roots]

    def _define(self, node: Expr, scope: Scope) -> None:
        if isinstance(node, Reduce):
            self.reductions.reduce(node, scope)
        elif isinstance(node, Const):
            scope.values[id(node)] = const_value(node.value, node.dtype)
        else:
            value = self._value(node, scope)
            scope.values[id(node)] = replace(value, text=scope.name_of(value.text, self.names))

    def _value(self, node: Expr, scope: Scope) -> Value:
        if isinstance(node, Load):
            return self.memory.load(node, scope)
        if isinstance(node, IndexValue):
            return _index_value(node.index.substitute(scope.env), scope)
        args = [_of(scope, a) for a in node.args]
        axes = frozenset[Var]().union(*(a.axes for a in args))
        return Value(self._pointwise(node, args, scope), node.dtype, axes, max(a.rank for a in args))

    def _pointwise(self, node: Expr, args: list[Value], scope: Scope) -> str:
        match node:
            case Cast(_, to):
                return cast_text(args[0], to)
            case Unary(op):
                return unary_text(op, args[0])
            case Binary(op):
                if op in DIVISIONS and args[0].dtype.is_integer:
                    args[1] = self._nonzero(node.b, args[1], scope)
                return binary_text(op, args[0], args[1], node.b)
            case Where():
                return where_text(*args)
        raise AssertionError(type(node))

    def _nonzero(self, node: Expr, divisor: Value, scope: Scope) -> Value:
        """The divisor with ones in the place of zeros, which are noted as a failed check."""
        if isinstance(node, Const) and node.value:
            return divisor
        self.memory.note_failure(f"{divisor.text} == 0", DIVISION_BY_ZERO, divisor, scope)
        return replace(divisor, text=f"tl.where({divisor.text} == 0, 1, {divisor.text})", literal=None)


def _function(name: str, parameters: Sequence[str], body: Sequence[str]) -> str:
    lines = "\n".join("    " + line for line in body)
    return f"@triton.jit\ndef {name}({', '.join(('b', *parameters))}):\n{lines}\n"


def _of(scope: Scope, node: Expr) -> Value:
    value = scope.find(id(node))
    assert value is not None
    return value


def _index_value(at: Index, scope: Scope) -> Value:
    axes = scope.axes_of(at)
    if at.is_constant:
        return const_value(at.constant, DType.I64)
    text = f"tl.full((), 0, tl.int64) + ({scope.index_text(at)})"
    return Value(text, DType.I64, axes, len(scope.axes) if axes else 0)


def _operands_first(roots: Sequence[Expr], scope: Scope) -> list[Expr]:
    """What has no value yet, operands before users; what a reduction computes at other points is its own."""
    missing = [root for root in roots if scope.find(id(root)) is None]

    def operands(node: Expr) -> tuple[Expr, ...]:
        if isinstance(node, Reduce):
            return ()
        return tuple(a for a in node.args if scope.find(id(a)) is None)

    return operands_first(missing, operands)
