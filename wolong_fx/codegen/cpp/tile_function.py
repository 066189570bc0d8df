"""The tile function of an operator: C++ that runs a range of its virtual blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from math import ceil, prod

from wolong_fx.codegen.cpp.expressions import ExpressionText
from wolong_fx.codegen.cpp.memory import STORAGE_TYPES, Active, Context, MemoryText
from wolong_fx.codegen.cpp.reductions import Cell, ReductionText
from wolong_fx.codegen.cpp.scope import Scope, Scopes
from wolong_fx.codegen.cpp.tiles import Planner, block_order
from wolong_fx.codegen.signature import Bindings
from wolong_fx.ir.expr import Load
from wolong_fx.ir.index import Index, IndexLike, Var

PREFETCH_STEPS = 32
"""Steps of a dot that are long enough for memory to answer meanwhile: 90 ns for 24 accumulators."""


@dataclass(frozen=True)
class TileFunction:
    """Finished text.

    name: of the function
    lanes: elements of its vectors, which choose the namespace it stands in
    pointers: what it reads from the table of bindings
    """

    name: str
    lanes: int
    text: str
    pointers: int


class TileFunctionText:
    """Writes one tile function.

    Names in the text: p0.. pointers; b0.. which block along each dimension; n0.. points of the block; x0.. a
    point in it; for the dimensions of a micro-kernel, y (rows) and u (lanes) count its steps; k0.. variables
    of reductions; t0.. variables of the loops around; a0.. accumulators; r0.. results of reductions; v0..
    values.
    """

    def __init__(
        self,
        name: str,
        planner: Planner,
        bindings: Bindings,
        loop_depth: Mapping[Var, int],
        number_check: Callable[[str], int],
        use: Callable[[str], None],
    ) -> None:
        self.name, self.op, self.planner, self.bindings = name, planner.op, planner, bindings
        self.order = block_order(planner)
        self.plan = planner.plan.fitted(planner.op)
        self.analysis = planner.analysis
        self.grid = [Var(f"b{i}", max(n, 1)) for i, n in enumerate(planner.op.grid)]
        self.points = [Var(f"n{i}", t + 1) for i, t in enumerate(planner.op.tile)]
        self.loops = {v: Var(f"t{depth}", v.extent) for v, depth in loop_depth.items()}
        self.lane = Var("lane", self.plan.lanes)
        self.lane_dim = len(self.op.dims) - 1 if self.analysis.lane is not None else None
        self.u = Var("u", self._steps(self.lane_dim, self.plan.span))
        self.y = Var("y", self._steps(self.plan.row, self.plan.rows))
        memory = MemoryText(bindings, number_check, use, self._pinned())
        self.expressions = ExpressionText(planner.analysis, memory, number_check, use)
        self.reductions = ReductionText(planner, self.plan, self.expressions, use)
        self.expressions.reduce = self.reductions.value
        self.kernels: list[str] = []

    def write(self) -> TileFunction:
        scopes = Scopes((Scope(frozenset(self._given()) | set(self.points)),))
        self._block(scopes)
        body = [*self._block_position(), *scopes.innermost.lines]
        lines = [
            *self._prologue(body),
            "for (i64 b = first; b < last; b++) {",
            *("  " + x for x in body),
            "}",
        ]
        parameters = "char* const* args, const i64* bind, const i64* loop, i64 first, i64 last"
        header = f"NOINLINE void {self.name}({parameters})"
        text = "\n".join([*self.kernels, header + " {", *("  " + line for line in lines), "}"])
        return TileFunction(self.name, self.plan.lanes, text, len(self.bindings.pointers))

    # What stands around the points of a block

    def _steps(self, dim: int | None, span: int) -> int:
        return 1 if dim is None else max(1, ceil(self.op.tile[dim] / span))

    def _pinned(self) -> dict[int, frozenset[Var]]:
        """Loads of what the operator writes stay inside its sequential loops."""
        dims = enumerate(self.op.dims)
        inside = frozenset(Var(f"x{i}", d.extent) for i, d in dims if d.sequential and d.extent > 1)
        return dict.fromkeys(self.analysis.written, inside) if inside else {}

    def _given(self) -> list[Var]:
        """Variables that have a value anywhere in a block."""
        return [*self.grid, *self.loops.values(), self.lane]

    def _block_position(self) -> list[str]:
        """b0.. of block number b, and n0.., the points the block has along each dimension."""
        lines, stride = [], 1
        for i in reversed(self.order):
            blocks, tile, extent = self.op.grid[i], self.op.tile[i], self.op.dims[i].extent
            if blocks > 1:
                at = "b" if stride == 1 else f"b / {stride}"
                whole = stride * blocks == self.op.virtual_blocks
                lines.append(f"const i64 b{i} = {at if whole else f'{at} % {blocks}'};")
            stride *= max(blocks, 1)
            count = (
                str(tile)
                if blocks <= 1 or extent % tile == 0
                else f"at_most({tile}, {extent} - b{i} * {tile})"
            )
            lines.append(f"const i64 n{i} = {count if blocks != 1 else extent};")
        return lines

    def _prologue(self, body: list[str]) -> list[str]:
        text = "\n".join([*body, *self.kernels])
        lines = []
        for i, binding in enumerate(self.bindings.pointers):
            kind = STORAGE_TYPES[binding.buffer.dtype]
            lines.append(f"{kind}* const p{i} = ({kind}*)(args[bind[{2 * i}]] + bind[{2 * i + 1}]);")
        lines += [
            f"const i64 {v.name} = loop[{v.name[1:]}];"
            for v in sorted(set(self.loops.values()))
            if _uses(text, v.name)
        ]
        if _uses(text, "failure"):
            lines.append("i64* const failure = (i64*)(args[0] + FAILURE);")
        if _uses("\n".join(body), "lane"):
            lines.append("const i64v lane = lane_numbers();")
        return lines

    # The points of a block

    def _block(self, scopes: Scopes) -> None:
        """Loops over the block; innermost, steps of the micro-kernel."""
        env: dict[Var, Index] = {v: Index.of(t) for v, t in self.loops.items()}
        special = {self.lane_dim, self.plan.row}
        with ExitStack() as stack:
            for i in self.order:
                if i not in special:
                    scopes, env = self._loop(i, scopes, env, stack)
            self._steps_of_kernel(scopes, env)

    def _loop(
        self, i: int, scopes: Scopes, env: dict[Var, Index], stack: ExitStack
    ) -> tuple[Scopes, dict[Var, Index]]:
        """A loop over the points of a plain dimension."""
        dim, tile = self.op.dims[i], self.op.tile[i]
        x = Var(f"x{i}", min(tile, dim.extent))
        if x.extent > 1:
            header = f"for (i64 {x.name} = 0; {x.name} < n{i}; {x.name}++)"
            scopes = stack.enter_context(scopes.loop(header, [x]))
        return scopes, {**env, dim.var: self._position(i, x)}

    def _position(self, i: int, inside: IndexLike) -> Index:
        return Index.of(self.grid[i]) * self.op.tile[i] + inside

    def _steps_of_kernel(self, scopes: Scopes, env: dict[Var, Index]) -> None:
        """All steps of the micro-kernel along the lanes, and for each along the rows; ragged ones apart."""
        for is_ragged in self._lane_cases():
            with _maybe_loop(scopes, self._lane_header(is_ragged), self.u) as inner:
                for rows in self._row_cases():
                    with _maybe_loop(inner, self._row_header(rows), self.y) as innermost:
                        if self.plan.blocked:
                            self._call_kernel(innermost, env, rows, is_ragged)
                        else:
                            self._kernel(self._cells(innermost, env, rows, is_ragged))

    def _block_sizes(self, dim: int) -> set[int]:
        """How many points along a dimension blocks have."""
        tile, extent = self.op.tile[dim], self.op.dims[dim].extent
        return {min(tile, extent), extent % tile or tile} if extent > tile else {extent}

    def _lane_cases(self) -> list[bool]:
        """Whether steps with all lanes, and ones with fewer, occur."""
        if self.lane_dim is None:
            return [False]
        sizes, span = self._block_sizes(self.lane_dim), self.plan.span
        whole, ragged = any(n >= span for n in sizes), any(n % span for n in sizes)
        return [False] * whole + [True] * ragged

    def _row_cases(self) -> list[int]:
        """Numbers of rows that steps have: the micro-kernel's, and remainders."""
        if self.plan.row is None:
            return [1]
        sizes, rows = self._block_sizes(self.plan.row), self.plan.rows
        return [rows] * any(n >= rows for n in sizes) + sorted({n % rows for n in sizes} - {0})

    def _lane_header(self, is_ragged: bool) -> str:
        """The loop over u; when ragged, the one step after the whole ones."""
        if self.lane_dim is None:
            return ""
        n, span = f"n{self.lane_dim}", self.plan.span
        if self.u.extent == 1 and len(self._lane_cases()) == 1:
            return ""
        if is_ragged:
            return f"if (const i64 u = {n} / {span}; u * {span} < {n})"
        return f"for (i64 u = 0; u < {n} / {span}; u++)"

    def _row_header(self, rows: int) -> str:
        if self.plan.row is None:
            return ""
        n, step = f"n{self.plan.row}", self.plan.rows
        if self.y.extent == 1 and len(self._row_cases()) == 1:
            return ""
        if rows < step:
            return f"if (const i64 y = {n} / {step}; {n} - y * {step} == {rows})"
        return f"for (i64 y = 0; y < {n} / {step}; y++)"

    # The micro-kernel

    def _call_kernel(self, scopes: Scopes, env: dict[Var, Index], rows: int, is_ragged: bool) -> None:
        """A call of the micro-kernel as a function of its own, which this writes."""
        known = [*self._given(), *self.points, self.u, self.y, *_variables_of(env.values())]
        inside = Scopes((Scope(frozenset(known)),))
        cells = self._cells(inside, env, rows, is_ragged)
        self._prefetch(inside, cells.values())
        self._kernel(cells)
        lines = list(inside.innermost.lines)
        text = "\n".join(lines)
        used = [
            v.name for v in dict.fromkeys(known) if v != self.lane and v.extent > 1 and _uses(text, v.name)
        ]
        if _uses(text, "lane"):
            lines.insert(0, "const i64v lane = lane_numbers();")
        name = f"{self.name}_{rows}x{self.plan.vectors}{'_ragged' if is_ragged else ''}"
        parameters = [
            f"{STORAGE_TYPES[b.buffer.dtype]}* p{i}"
            for i, b in enumerate(self.bindings.pointers)
            if _uses(text, f"p{i}")
        ]
        parameters += [f"i64 {v}" for v in used] + (["i64* failure"] if _uses(text, "failure") else [])
        body = "\n".join("  " + line for line in lines)
        self.kernels.append(f"NOINLINE void {name}({', '.join(parameters)}) {{\n{body}\n}}")
        scopes.add(f"{name}({', '.join(p.split()[-1] for p in parameters)});")

    def _kernel(self, cells: dict[Cell, Context]) -> None:
        """The values and stores of all cells of one step."""
        self.reductions.enter(cells)
        for cell in cells.values():
            self._point(cell)

    def _prefetch(self, scopes: Scopes, cells: Iterable[Context]) -> None:
        """Ask for what is read after the dots, so that it arrives while they run.

        Each row has lines of its own there, and a step of a loop comes back to them only after others'.
        """
        if not self._has_long_dots():
            return
        loads = [load for load in self.analysis.loads_at_points if self._is_own_line(load)]
        addresses = [self.expressions.memory.address(load, ctx) for ctx in cells for load in loads]
        for address in dict.fromkeys(addresses):
            scopes.add(f"__builtin_prefetch({address});")

    def _has_long_dots(self) -> bool:
        return any(prod(v.extent for v in r.over) >= PREFETCH_STEPS for r in self.analysis.dots)

    def _is_own_line(self, load: Load) -> bool:
        """Whether each row of each vector reads a line of its own."""
        if load.fill is not None or load.access.gathers:
            return False
        dims = [self.op.dims[d].var for d in (self.lane_dim, self.plan.row) if d is not None]
        is_line = self.analysis.lane_stride(load.access, self.plan.span) == 1
        return is_line and all(self.analysis.depends(load, var) for var in dims)

    def _cells(
        self, scopes: Scopes, env: dict[Var, Index], rows: int, is_ragged: bool
    ) -> dict[Cell, Context]:
        """The contexts of one step, by row and vector."""
        return {
            (m, j): self._cell(scopes, env, m, j, is_ragged)
            for m in range(rows)
            for j in range(self.plan.vectors)
        }

    def _cell(self, scopes: Scopes, env: dict[Var, Index], m: int, j: int, is_ragged: bool) -> Context:
        env, plan = dict(env), self.plan
        if plan.row is not None:
            env[self.op.dims[plan.row].var] = self._position(plan.row, Index.of(self.y) * plan.rows + m)
        if self.lane_dim is None:
            return Context(env, scopes, None, None, (m, j), guards=self._guards())
        at = Index.of(self.u) * plan.span + j * plan.lanes
        env[self.op.dims[self.lane_dim].var] = self._position(self.lane_dim, at + self.lane)
        active = self._active(at) if is_ragged else None
        return Context(env, scopes, self.lane, active, (m, j), guards=self._guards())

    def _guards(self) -> frozenset[Var]:
        """Variables of single steps that only some blocks take."""
        steps = ((self.u, self._lane_cases()), (self.y, self._row_cases()))
        return frozenset(var for var, cases in steps if var.extent == 1 and len(cases) > 1)

    def _active(self, at: Index) -> Active:
        assert self.lane_dim is not None
        n = self.points[self.lane_dim]
        rest = "".join(f" - {'u * ' if a == self.u else ''}{c}" for a, c in at.terms)
        rest += f" - {at.constant}" if at.constant else ""
        return Active(f"{n.name}{rest}", frozenset([n, *at.variables()]))

    def _point(self, ctx: Context) -> None:
        """The stores of one point of each lane, after all that they store and where is known."""
        gathers = [g.value for s in self.op.stores for g in s.access.gathers]
        found = self.expressions.values([*(s.value for s in self.op.stores), *gathers], ctx)
        values, places = found[: len(self.op.stores)], iter(found[len(self.op.stores) :])
        for store, value in zip(self.op.stores, values, strict=True):
            gathered = [next(places) for _ in store.access.gathers]
            self.expressions.memory.store(store, gathered, replace(value), ctx)


def _maybe_loop(scopes: Scopes, header: str, var: Var) -> AbstractContextManager[Scopes]:
    """Scopes inside a loop, or the same ones where there is nothing to loop over."""
    return scopes.loop(header, [var]) if header else nullcontext(scopes)


def _uses(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


def _variables_of(indices: Iterable[Index]) -> list[Var]:
    return sorted({v for i in indices for v in i.variables()})
