"""Reductions as loops over accumulators held in registers: dots, row and column sums, extremes and their
positions.

Vectors run along one of two directions. *Along the lanes*, an accumulator is a vector of results; a dot's
micro-kernel is no more than this for a few rows and vectors at once, since what does not depend on the row
(or the lane) is named once for all. *Along the innermost variable*, an accumulator is a vector of partial
results that are folded at the end: for what lies contiguously that way (rows of a weight matrix, the
elements of a row that is summed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod

from wolong_fx.codegen.cpp.expressions import ExpressionText
from wolong_fx.codegen.cpp.memory import Active, Context
from wolong_fx.codegen.cpp.pointwise import (
    Use,
    as_vectors,
    binary_text,
    cast_text,
    const_text,
    lowest,
    rounded,
)
from wolong_fx.codegen.cpp.row_tables import RowTable, find_row_tables
from wolong_fx.codegen.cpp.scope import C_TYPES, Scope, Scopes, Value, c_type, index_text
from wolong_fx.codegen.cpp.tiles import Planner, TilePlan
from wolong_fx.ir.expr import Binary, Reduce
from wolong_fx.ir.index import Index, Var, contiguous_strides, linear
from wolong_fx.ir.types import DType

Cell = tuple[int, int]
Step = Callable[[Scopes, list[Index], int], None]
"""Emits one step of a loop: in these scopes, at these values of the variables, into this partial
accumulator.
"""
InnerStep = Callable[[Scopes, list[Index], int, Active | None], None]
"""As Step, with the lanes that are values (None: all)."""

PARTIAL_SUMS = 4
"""Independent accumulators of a reduction along its innermost variable, to hide the latency of each."""

LONGEST_CHAIN, CHAIN = 256, 64
"""Terms that an accumulator takes in turn at most; of longer sums, about how many before it is added to a
total. For gradients that sum 1,280 terms, 64 halve the rms error of one chain (2.05 times eager's to 1.09)
and cost 0.04 ms of 5.2; 32 are no better.
"""


@dataclass(frozen=True)
class Accumulator:
    """A variable (of a position: two) that a reduction is gathered in.

    place: type of positions; where vectors run along the innermost variable, those of the first lane
    """

    reduce: Reduce
    name: str
    is_vector: bool
    place: DType = DType.I64

    @property
    def dtype(self) -> DType:
        kind = self.reduce.body.dtype.compute
        return DType.U8 if self.is_position and kind is DType.BOOL else kind

    @property
    def is_position(self) -> bool:
        return self.reduce.op in ("argmax", "argmin")


class ReductionText:
    """Emits the reductions of one tile function, those of a group in one loop."""

    def __init__(self, planner: Planner, plan: TilePlan, expressions: ExpressionText, use: Use) -> None:
        self.planner = planner
        self.plan = plan
        self.analysis = planner.analysis
        self.expressions = expressions
        self.use = use
        self.cells: dict[Cell, Context] = {}
        self.results: dict[tuple[int, Cell], Value] = {}
        self.homes: dict[tuple[int, Cell], Scope] = {}
        self.tables = find_row_tables(planner)
        expressions.tabled = {id(t.used): t for t in self.tables}
        self.group_of = {id(r): group for group in planner.groups() for r in group}
        self._variables = 0

    def enter(self, cells: dict[Cell, Context]) -> None:
        """Start on another micro-kernel: the contexts of its cells. What was computed around it holds."""
        self.cells = cells
        around = {id(scope) for ctx in cells.values() for scope in ctx.scopes.chain}
        self.results = {
            key: value
            for key, value in self.results.items()
            if not value.is_vector and id(self.homes[key]) in around
        }

    def value(self, reduce: Reduce, ctx: Context) -> Value:
        """The result in a context; computed for the whole micro-kernel and group when it is first asked
        for.
        """
        if id(reduce) not in self.group_of:
            return self._nested(reduce, ctx)
        key = (id(reduce), self._cell(reduce, ctx.cell))
        if key not in self.results:
            self._emit_group(self.group_of[id(reduce)])
        return _of_column(self.results[key], ctx)

    def _cell(self, reduce: Reduce, cell: Cell) -> Cell:
        """The cell whose result this cell shares: rows and vectors that the reduction does not depend on
        are 0.
        """
        row, vector = cell
        dims = self.planner.op.dims
        if self.plan.row is None or not self.analysis.depends(reduce, dims[self.plan.row].var):
            row = 0
        if not dims or not self.analysis.depends(reduce, dims[-1].var):
            vector = 0
        return row, vector

    def _emit_group(self, group: list[Reduce]) -> None:
        cells = sorted({self._cell(group[0], cell) for cell in self.cells})
        contexts = {cell: self._hoisted(group, self.cells[cell]) for cell in cells}
        lane = self.analysis.lane
        if not self.planner.runs_along_inner(group[0]):
            found = self._along_lanes(group, contexts, self.plan.split)
        elif lane is not None and self.analysis.depends(group[0], lane.var):
            found = {}
            for reduce in group:
                found |= self._columns(reduce, contexts)
        else:
            found = self._along_inner(group, contexts)
        self.results.update(found)
        self.homes.update({key: contexts[key[1]].scopes.innermost for key in found})

    def _nested(self, reduce: Reduce, ctx: Context) -> Value:
        """A reduction inside another one's loop."""
        place = self._hoisted([reduce], ctx)
        return self._along_lanes([reduce], {ctx.cell: place}, 1)[id(reduce), ctx.cell]

    def _hoisted(self, group: Sequence[Reduce], ctx: Context) -> Context:
        """The context in the outermost scopes that the reductions can be computed in."""
        needs = self._needs(group, ctx)
        return ctx.inside(ctx.scopes.find(needs), {})

    def _needs(self, group: Sequence[Reduce], ctx: Context) -> frozenset[Var]:
        free = frozenset[Var]().union(*(self.analysis.free[id(r)] for r in group))
        needs = ctx.guards.union(*(ctx.env[v].variables() if v in ctx.env else {v} for v in free))
        if ctx.active and ctx.lane in needs:
            needs |= ctx.active.needs
        if any(self.analysis.reads_written(r) for r in group):
            needs = needs.union(*self.expressions.memory.pinned.values())
        return needs

    # Along the lanes

    def _along_lanes(
        self, group: list[Reduce], contexts: dict[Cell, Context], split: int
    ) -> dict[tuple[int, Cell], Value]:
        scopes = next(iter(contexts.values())).scopes
        extents = [v.extent for v in group[0].over]
        if all(map(_is_float_sum, group)) and prod(extents) > LONGEST_CHAIN * split:
            return self._in_chains(group, contexts, extents, split)
        accumulators = self._chain(group, contexts, scopes, extents, split, lambda at: at)
        return {
            (id(r), cell): self._joined(accumulators[id(r), cell], ctx, scopes)
            for r in group
            for cell, ctx in contexts.items()
        }

    def _chain(
        self,
        group: list[Reduce],
        contexts: dict[Cell, Context],
        scopes: Scopes,
        extents: list[int],
        split: int,
        place: Callable[[list[Index]], list[Index]],
    ) -> dict[tuple[int, Cell], list[Accumulator]]:
        """Accumulators of the steps that `extents` count, in new variables of these scopes.

        place: what the variables of the reductions are at a step
        """
        split = min(split, extents[-1]) if extents and 0 not in extents and not _is_position(group) else 1
        accumulators = {
            (id(r), cell, s): self._new(r, scopes, self._is_vector(r, ctx))
            for s in range(split)
            for r in group
            for cell, ctx in contexts.items()
        }

        def step(inner: Scopes, at: list[Index], s: int) -> None:
            for cell, ctx in contexts.items():
                for r in group:
                    env = dict(zip(r.over, place(at), strict=True))
                    here = ctx.inside(inner, env, inner=ctx.inner | _variables(at))
                    self._accumulate(accumulators[id(r), cell, s], r, here)

        if 0 not in extents:
            self._loops(scopes, extents, split, step)
        return {
            (id(r), cell): [accumulators[id(r), cell, s] for s in range(split)]
            for r in group
            for cell in contexts
        }

    def _in_chains(
        self, group: list[Reduce], contexts: dict[Cell, Context], extents: list[int], split: int
    ) -> dict[tuple[int, Cell], Value]:
        """Sums of sums: a rounding error grows with the terms that follow it in its own chain alone."""
        scopes = next(iter(contexts.values())).scopes
        totals = {
            (id(r), cell): self._new(r, scopes, self._is_vector(r, ctx))
            for r in group
            for cell, ctx in contexts.items()
        }
        depth, steps = _chain_of(extents)
        with ExitStack() as stack:
            outer, before = self._outer_loops(scopes, extents[:depth], stack)
            for first, trips, size in _blocks(extents[depth], steps):
                var = self._variable(trips)
                start = Index.of(var) * size + first

                def place(at: list[Index], start: Index = start) -> list[Index]:
                    return [*before, start + at[0], *at[1:]]

                with outer.loop(_header(var), [var]) as inner:
                    within = [size, *extents[depth + 1 :]]
                    parts = self._chain(group, contexts, inner, within, split, place)
                    for (number, cell), part in parts.items():
                        total, value = totals[number, cell], self._joined(part, contexts[cell], inner)
                        inner.add(f"{total.name} = {self._combine(total.reduce, total.name, value.text)};")
        return {
            (id(r), cell): self._joined([totals[id(r), cell]], ctx, scopes)
            for r in group
            for cell, ctx in contexts.items()
        }

    def _is_vector(self, reduce: Reduce, ctx: Context) -> bool:
        return ctx.lane is not None and ctx.lane in self._needs([reduce], ctx)

    def _loops(self, scopes: Scopes, extents: list[int], split: int, step: Step) -> None:
        """Loops over all values of the variables, the last one in steps of `split`."""
        if not extents:
            step(scopes, [], 0)
            return
        with ExitStack() as stack:
            outer, at = self._outer_loops(scopes, extents[:-1], stack)
            for first, trips, stride in _pieces(extents[-1], split):
                var = self._variable(trips)
                with outer.loop(_header(var), [var]) as inner:
                    for s in range(stride):
                        step(inner, [*at, Index.of(var) * stride + (first + s)], s)

    def _outer_loops(
        self, scopes: Scopes, extents: list[int], stack: ExitStack
    ) -> tuple[Scopes, list[Index]]:
        """Scopes inside loops over all variables but the last."""
        at = []
        for extent in extents:
            var = self._variable(extent)
            scopes = stack.enter_context(scopes.loop(_header(var), [var]))
            at.append(Index.of(var))
        return scopes, at

    def _variable(self, extent: int) -> Var:
        self._variables += 1
        return Var(f"k{self._variables - 1}", extent)

    def _new(self, reduce: Reduce, scopes: Scopes, is_vector: bool, place: DType = DType.I64) -> Accumulator:
        accumulator = Accumulator(reduce, scopes.new_name("a"), is_vector, place)
        start = const_text(_identity(reduce), accumulator.dtype)
        kind = c_type(accumulator.dtype, is_vector)
        scopes.add(f"{kind} {accumulator.name} = {f'broadcast({start})' if is_vector else start};")
        if accumulator.is_position:
            scopes.add(f"{c_type(accumulator.place, is_vector)} {accumulator.name}_at{{}};")
        return accumulator

    def _accumulate(
        self, accumulator: Accumulator, reduce: Reduce, ctx: Context, keep: Active | None = None
    ) -> None:
        """Take one more value in; where only some lanes are values, the others change nothing."""
        text = self._taken(accumulator, reduce, ctx)
        if keep is not None:
            other = f"broadcast({const_text(_identity(reduce), accumulator.dtype)})"
            lanes = f"first_lanes({keep.text})"
            if accumulator.dtype is DType.BOOL:
                text = f"(({lanes} & {text}) | (~{lanes} & {other}))"
            else:
                text = f"select({lanes}, {text}, {other})"
        if accumulator.is_position:
            ctx.scopes.add(self._advance(accumulator, reduce, text, ctx))
        else:
            ctx.scopes.add(f"{accumulator.name} = {self._combine(reduce, accumulator.name, text)};")

    def _taken(self, accumulator: Accumulator, reduce: Reduce, ctx: Context) -> str:
        """The value at this step; a product that is summed stands in the sum: one instruction for both."""
        body = reduce.body
        is_product = isinstance(body, Binary) and body.op == "mul" and body.dtype is accumulator.dtype
        if reduce.op == "sum" and is_product and isinstance(body, Binary):
            factors = as_vectors(self.expressions.values([body.a, body.b], ctx))
            if body.dtype.is_float and factors[0].is_vector is accumulator.is_vector:
                return binary_text("mul", factors[0], factors[1], self.use)
        value = self.expressions.values([body], ctx)[0]
        if value.dtype.compute is not accumulator.dtype:
            text = f"({cast_text(value, accumulator.dtype, self.use)})"
            value = replace(value, text=text, dtype=accumulator.dtype)
        return value.as_vector if accumulator.is_vector else value.text

    def _combine(self, reduce: Reduce, a: str, b: str) -> str:
        if reduce.body.dtype is DType.BOOL:
            return f"{a} {'|' if reduce.op in ('any', 'max', 'sum') else '&'} {b}"
        if reduce.op in ("max", "min"):
            self.use("extremes")
            return f"{reduce.op}_({a}, {b})"
        return f"{a} {'+' if reduce.op == 'sum' else '*'} {b}"

    def _advance(self, accumulator: Accumulator, reduce: Reduce, text: str, ctx: Context) -> str:
        self.use("positions")
        extents = tuple(v.extent for v in reduce.over)
        at = linear([ctx.env[v] for v in reduce.over], contiguous_strides(extents))
        first = at.substitute({ctx.lane: 0}) if ctx.lane is not None else at
        position = index_text(first)
        if accumulator.is_vector:
            position = f"broadcast(({C_TYPES[accumulator.place]})({position}))"
        return f"take_{_comparison(reduce)}({accumulator.name}, {accumulator.name}_at, {text}, {position});"

    def _joined(self, parts: list[Accumulator], ctx: Context, scopes: Scopes) -> Value:
        """The result of partial accumulators, combined pairwise."""
        reduce, names = parts[0].reduce, [p.name for p in parts]
        while len(names) > 1:
            pairs = [self._combine(reduce, a, b) for a, b in zip(names[::2], names[1::2], strict=False)]
            names = [f"({p})" for p in pairs] + names[len(pairs) * 2 :]
        if parts[0].is_position:
            names = [parts[0].name + "_at"]
        needs = self._needs([reduce], ctx)
        text = rounded(names[0], reduce.dtype, self.use)
        if text == parts[0].name:
            return Value(text, reduce.dtype, parts[0].is_vector, needs)
        name = scopes.new_name("r")
        scopes.add(f"const {c_type(reduce.dtype, parts[0].is_vector)} {name} = {text};")
        return Value(name, reduce.dtype, parts[0].is_vector, needs)

    # Along the innermost variable

    def _along_inner(
        self, group: list[Reduce], contexts: dict[Cell, Context]
    ) -> dict[tuple[int, Cell], Value]:
        """One result for all lanes: several vectors of partial results, folded at the end."""
        scopes = next(iter(contexts.values())).scopes
        lanes, extents = self.plan.lanes, [v.extent for v in group[0].over]
        count = max(1, min(PARTIAL_SUMS, extents[-1] // lanes))
        accumulators = {
            (id(r), cell, s): self._new(r, scopes, True, _place(r))
            for s in range(count)
            for r in group
            for cell, ctx in contexts.items()
        }
        tables = [t for t in self.tables if any(t.reduce is r for r in group)]
        for table in tables:
            kind = C_TYPES[table.kept.dtype]
            scopes.add(f"{kind} {table.name}[{table.elements}] __attribute__((aligned(64)));")

        def step(inner: Scopes, at: list[Index], s: int, keep: Active | None) -> None:
            for cell, ctx in contexts.items():
                for r in group:
                    here = self._in_lanes(ctx, r, inner, at, keep)
                    self._accumulate(accumulators[id(r), cell, s], r, here, keep)
                    self._fill(tables, r, here)

        if 0 not in extents:
            self._inner_loops(scopes, extents, count, step)
        found = {}
        for r in group:
            for cell, ctx in contexts.items():
                parts = [accumulators[id(r), cell, s] for s in range(count)]
                found[id(r), cell] = self._folded(parts, ctx, scopes)
        return found

    def _fill(self, tables: Sequence[RowTable], reduce: Reduce, ctx: Context) -> None:
        """Leave what a step computed in the tables of its reduction."""
        for table in tables:
            if table.reduce is reduce:
                at = ctx.env[reduce.over[0]].substitute({ctx.lane: 0} if ctx.lane else {})
                value = self.expressions.values([table.kept], ctx)[0]
                ctx.scopes.add(f"store({table.name} + {index_text(at)}, {value.text});")

    def _in_lanes(
        self, ctx: Context, reduce: Reduce, scopes: Scopes, at: list[Index], keep: Active | None
    ) -> Context:
        """The context of values whose lanes are steps of the innermost variable."""
        env = dict(zip(reduce.over, at, strict=True))
        lane = Var("lane", self.plan.lanes)
        return ctx.inside(scopes, env, lane=lane, active=keep, inner=ctx.inner | _variables(at))

    def _inner_loops(self, scopes: Scopes, extents: list[int], count: int, step: InnerStep) -> None:
        """Loops over all values, the last variable by vectors of them, `count` a trip."""
        lanes, lane = self.plan.lanes, Index.of(Var("lane", self.plan.lanes))
        whole, rest = divmod(extents[-1], lanes)
        with ExitStack() as stack:
            outer, at = self._outer_loops(scopes, extents[:-1], stack)
            for first, trips, stride in _pieces(whole, count):
                var = self._variable(trips)
                with outer.loop(_header(var), [var]) as inner:
                    for s in range(stride):
                        vector = Index.of(var) * stride + (first + s)
                        step(inner, [*at, vector * lanes + lane], s, None)
            if rest:
                with outer.loop("", []) as inner:
                    step(inner, [*at, lane + whole * lanes], 0, Active(str(rest)))

    def _folded(self, parts: list[Accumulator], ctx: Context, scopes: Scopes) -> Value:
        """The lanes of partial accumulators, combined to one value for all lanes."""
        reduce = parts[0].reduce
        if parts[0].is_position:
            for part in parts[1:]:
                pair = f"{parts[0].name}, {parts[0].name}_at, {part.name}, {part.name}_at"
                scopes.add(f"merge_{_comparison(reduce)}({pair});")
            folded, needs = self._fold_position(parts[0]), self._needs([reduce], ctx)
        else:
            joined = self._joined(parts, ctx, scopes)
            folded, needs = rounded(self._fold(reduce, joined.text), reduce.dtype, self.use), joined.needs
        name = scopes.new_name("r")
        scopes.add(f"const {c_type(reduce.dtype, False)} {name} = {folded};")
        return Value(name, reduce.dtype, False, needs)

    def _fold_position(self, accumulator: Accumulator) -> str:
        self.use("positions")
        return f"{accumulator.reduce.op}_lanes({accumulator.name}, {accumulator.name}_at)"

    def _fold(self, reduce: Reduce, vector: str) -> str:
        """All lanes of a vector combined."""
        if reduce.body.dtype is DType.BOOL:
            return f"{'any' if reduce.op in ('any', 'max', 'sum') else 'all'}({vector})"
        self.use("horizontal")
        return f"{reduce.op}_lanes({vector})"

    def _columns(self, reduce: Reduce, contexts: dict[Cell, Context]) -> dict[tuple[int, Cell], Value]:
        """A result for each lane: some lanes' vectors of partial results at once, then all folded into one
        vector.
        """
        scopes = next(iter(contexts.values())).scopes
        parts = {}
        for cell in contexts:
            parts[cell] = scopes.new_name("part")
            kind = "i64" if _is_position([reduce]) else c_type(reduce.body.dtype.compute, True)
            scopes.add(f"{kind} {parts[cell]}[W] = {{}};")
        for vector in sorted({cell[1] for cell in contexts}):
            some = {cell: ctx for cell, ctx in contexts.items() if cell[1] == vector}
            for first in range(0, self._used_lanes(), self.plan.columns):
                columns = range(first, min(first + self.plan.columns, self._used_lanes()))
                with scopes.loop("", []) as inner:
                    self._some_columns(reduce, some, columns, parts, inner)
        return {
            (id(reduce), cell): self._each(reduce, parts[cell], ctx, scopes) for cell, ctx in contexts.items()
        }

    def _used_lanes(self) -> int:
        lane = self.analysis.lane
        assert lane is not None
        return min(self.plan.lanes, lane.extent)

    def _some_columns(
        self,
        reduce: Reduce,
        contexts: dict[Cell, Context],
        columns: Iterable[int],
        parts: dict[Cell, str],
        scopes: Scopes,
    ) -> None:
        points = {
            (cell, c): self._at_column(ctx, c, scopes) for c in columns for cell, ctx in contexts.items()
        }
        accumulators = {point: self._new(reduce, scopes, True, _place(reduce)) for point in points}

        def step(inner: Scopes, at: list[Index], s: int, keep: Active | None) -> None:
            for point, ctx in points.items():
                here = self._in_lanes(ctx, reduce, inner, at, keep)
                self._accumulate(accumulators[point], reduce, here, keep)

        extents = [v.extent for v in reduce.over]
        if 0 not in extents:
            self._inner_loops(scopes, extents, 1, step)
        for (cell, c), accumulator in accumulators.items():
            part = self._fold_position(accumulator) if accumulator.is_position else accumulator.name
            scopes.add(f"{parts[cell]}[{c}] = {part};")

    def _at_column(self, ctx: Context, column: int, scopes: Scopes) -> Context:
        """The context of one lane; of a lane past the end, that of the last one, whose memory may be read."""
        lane_dim, lane = self.analysis.lane, ctx.lane
        assert lane_dim is not None and lane is not None
        at = Index.of(column)
        if ctx.active is not None and column:
            last = Var(f"c{column}", column + 1)
            text = f"at_most({column}, {ctx.active.text} - 1)"
            if last not in scopes.innermost.variables:
                scopes.add(f"const i64 {last.name} = {text};")
                scopes.innermost.variables |= {last}
            at = Index.of(last)
        env = {lane_dim.var: ctx.env[lane_dim.var].substitute({lane: at})}
        return ctx.inside(scopes, env, lane=None, active=None, column=at)

    def _each(self, reduce: Reduce, part: str, ctx: Context, scopes: Scopes) -> Value:
        kind = reduce.dtype
        name = scopes.new_name("r")
        if _is_position([reduce]):
            scopes.add(f"const i64v {name} = load({part});")
        elif reduce.op == "sum" and C_TYPES[reduce.body.dtype] in ("f32", "f64"):
            self.use("transposed")
            text = rounded(f"sum_each({part})", kind, self.use)
            scopes.add(f"const {c_type(kind, True)} {name} = {text};")
        else:
            scopes.add(f"{c_type(kind, True)} {name}{{}};")
            lane = (
                f"-(i32){self._fold(reduce, part + '[l]')}"
                if kind is DType.BOOL
                else self._fold(reduce, f"{part}[l]")
            )
            scopes.add(f"for (int l = 0; l < W; l++) {name}[l] = {lane};")
        return Value(name, kind, True, self._needs([reduce], ctx))


def _of_column(value: Value, ctx: Context) -> Value:
    """The value in a context: of a vector of points, the lane that the context is about."""
    if ctx.column is None or not value.is_vector:
        return value
    needs = value.needs | ctx.column.variables()
    text = f"{value.text}[{index_text(ctx.column)}]"
    if value.dtype is DType.BOOL:
        text = f"({text} != 0)"
    return replace(value, text=text, is_vector=False, needs=needs)


def _pieces(count: int, stride: int) -> list[tuple[int, int, int]]:
    """(first, trips, stride) of a loop in steps of `stride` and of what remains; the remainder goes one by
    one.
    """
    whole = count // stride * stride
    pieces = [(0, count // stride, stride)] if whole else []
    return pieces + ([(whole, count - whole, 1)] if count > whole else [])


def _chain_of(extents: Sequence[int]) -> tuple[int, int]:
    """The outermost variable of which a chain takes some steps, with all of those inside, and how many."""
    depth, inside = len(extents) - 1, 1
    while depth and inside * extents[depth] < CHAIN:
        inside *= extents[depth]
        depth -= 1
    return depth, min(max(1, CHAIN // inside), extents[depth])


def _blocks(count: int, size: int) -> list[tuple[int, int, int]]:
    """(first, trips, steps of each) of a loop in blocks; what remains is one smaller block."""
    whole = count // size * size
    return [(0, count // size, size)] + ([(whole, 1, count - whole)] if count > whole else [])


def _header(var: Var) -> str:
    return f"for (i64 {var.name} = 0; {var.name} < {var.extent}; {var.name}++)" if var.extent > 1 else ""


def _variables(indices: Iterable[Index]) -> frozenset[Var]:
    return frozenset(v for i in indices for v in i.variables())


def _is_float_sum(reduce: Reduce) -> bool:
    return reduce.op == "sum" and reduce.body.dtype.is_float


def _is_position(group: Sequence[Reduce]) -> bool:
    return group[0].op in ("argmax", "argmin")


def _comparison(reduce: Reduce) -> str:
    return "larger" if reduce.op == "argmax" else "smaller"


def _place(reduce: Reduce) -> DType:
    """The narrowest type of a position, so that as many fit in a vector as there are values."""
    return DType.I32 if prod(v.extent for v in reduce.over) < 1 << 31 else DType.I64


def _identity(reduce: Reduce) -> float | int | bool:
    """The value that changes nothing."""
    kind = reduce.body.dtype
    match reduce.op:
        case "sum" | "any":
            return False if kind is DType.BOOL else 0
        case "prod" | "all":
            return True if kind is DType.BOOL else 1
        case "max" | "argmax":
            return lowest(kind, True)
    return lowest(kind, False)
