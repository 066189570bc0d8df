"""Programs to test targets and analyses with: a builder, a handful of typical programs, and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wolong_fx.ir.expr import (
    Access,
    Binary,
    Cast,
    Const,
    Coordinate,
    Expr,
    Gather,
    Load,
    Reduce,
    Unary,
    Where,
)
from wolong_fx.ir.index import Index, IndexLike, Var
from wolong_fx.ir.program import ArenaPlan, Dim, Item, Loop, OpInst, Program, Stage, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType

ARENA_HEADER = 4096
"""Bytes at the head of every arena that belong to the barrier."""

ALIGNMENT = 64


# ---- expressions


def at(buffer: Buffer, *index: IndexLike | Gather) -> Access:
    """`buffer[index]`."""
    coordinates: list[Coordinate] = [i if isinstance(i, Gather) else Index.of(i) for i in index]
    return Access(buffer, tuple(coordinates))


def load(buffer: Buffer, *index: IndexLike | Gather, fill: float | int | bool | None = None) -> Load:
    """The element `buffer[index]`."""
    return Load(at(buffer, *index), fill)


def add(*terms: Expr) -> Expr:
    """Sum of terms, left to right."""
    total = terms[0]
    for term in terms[1:]:
        total = Binary("add", total, term)
    return total


def mul(a: Expr, b: Expr) -> Expr:
    """a*b."""
    return Binary("mul", a, b)


def dot(k: Var, a: Expr, b: Expr) -> Expr:
    """Sum over k of a*b."""
    return Reduce("sum", (k,), mul(a, b))


def f32(value: float) -> Const:
    """A float32 constant."""
    return Const(value, DType.F32)


# ---- the builder


@dataclass
class ProgramBuilder:
    """Collects buffers and stages; `build` makes the program and, with `planned`, places its temporaries."""

    name: str
    buffers: list[Buffer] = field(default_factory=list)
    body: list[Item] = field(default_factory=list)

    def input(self, name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
        return self._buffer(name, shape, dtype, BufferKind.INPUT)

    def state(self, name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
        return self._buffer(name, shape, dtype, BufferKind.STATE)

    def output(self, name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
        return self._buffer(name, shape, dtype, BufferKind.OUTPUT)

    def temporary(self, name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
        return self._buffer(name, shape, dtype, BufferKind.TEMPORARY)

    def constant(self, name: str, tensor: Tensor, dtype: DType = DType.F32) -> Buffer:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return self._buffer(name, tuple(tensor.shape), dtype, BufferKind.CONSTANT, data)

    def stage(self, *ops: OpInst, barrier: bool = True) -> None:
        self.body.append(Stage(ops, barrier))

    def build(self, planned: bool = True) -> Program:
        program = Program(self.name, tuple(self.buffers), tuple(self.body))
        return replace(program, arena=plan_apart(program)) if planned else program

    def _buffer(
        self, name: str, shape: tuple[int, ...], dtype: DType, kind: BufferKind, data: bytes | None = None
    ) -> Buffer:
        self.buffers.append(Buffer.contiguous(name, dtype, shape, kind, data))
        return self.buffers[-1]


def operator(
    name: str, domain: Sequence[Var], *stores: Store, tile: Sequence[int] = (), sequential: Sequence[Var] = ()
) -> OpInst:
    """An operator over the variables of `domain`, outermost first."""
    return OpInst(name, tuple(Dim(v, v in sequential) for v in domain), stores, tuple(tile), (name,))


def plan_apart(program: Program) -> ArenaPlan:
    """A plan that gives every temporary bytes of its own."""
    offsets: dict[Buffer, int] = {}
    end = ARENA_HEADER
    for buffer in program.buffers:
        if buffer.kind is BufferKind.TEMPORARY:
            offsets[buffer] = end
            end += -(-max(buffer.span_bytes, 1) // ALIGNMENT) * ALIGNMENT
    return ArenaPlan(offsets, end)


def inputs_of(program: Program, seed: int = 0) -> list[Tensor]:
    """Random inputs: floats around 0; integers in [0, 4), so that they can index small buffers."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for buffer in program.buffers:
        if buffer.kind is BufferKind.INPUT:
            dense = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
            found.append(
                dense.to(_TORCH[buffer.dtype]) if buffer.dtype.is_float else _whole(dense, buffer.dtype)
            )
    return found


_TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}


def _whole(dense: Tensor, dtype: DType) -> Tensor:
    return (dense > 0) if dtype is DType.BOOL else (dense.abs() * 100 % 4).floor().to(_TORCH[dtype])


# ---- typical programs


def mlp(rows: int = 7, width: int = 13, tile: tuple[int, int] = (3, 4)) -> Program:
    """relu(x @ w + b) @ u: two stages, the second reads all columns of the first; 13 columns leave a ragged
    block.
    """
    p = ProgramBuilder("mlp")
    x, w, b, u = p.input("x", rows, 5), p.input("w", 5, width), p.input("b", width), p.input("u", width, 6)
    y, h = p.output("y", rows, 6), p.temporary("h", rows, width)
    i, j, k = Var("i", rows), Var("j", width), Var("k", 5)
    hidden = add(dot(k, load(x, i, k), load(w, k, j)), load(b, j))
    p.stage(operator("hidden", (i, j), Store(at(h, i, j), Binary("max", hidden, f32(0.0))), tile=tile))
    n, m = Var("n", 6), Var("m", width)
    out = dot(m, load(h, i, m), load(u, m, n))
    p.stage(operator("out", (i, n), Store(at(y, i, n), out), tile=tile))
    return p.build()


def softmax(rows: int = 5, columns: int = 11, tile: tuple[int, int] = (2, 4)) -> Program:
    """Row-wise softmax: a reduction a stage, then the quotient."""
    p = ProgramBuilder("softmax")
    x, y = p.input("x", rows, columns), p.output("y", rows, columns)
    top, total = p.temporary("top", rows), p.temporary("total", rows)
    i, j, k = Var("i", rows), Var("j", columns), Var("k", columns)
    p.stage(operator("rowmax", (i,), Store(at(top, i), Reduce("max", (k,), load(x, i, k))), tile=tile[:1]))
    exps = Unary("exp", Binary("sub", load(x, i, k), load(top, i)))
    p.stage(operator("rowsum", (i,), Store(at(total, i), Reduce("sum", (k,), exps)), tile=tile[:1]))
    exp = Unary("exp", Binary("sub", load(x, i, j), load(top, i)))
    p.stage(operator("divide", (i, j), Store(at(y, i, j), Binary("div", exp, load(total, i))), tile=tile))
    return p.build()


def concat(rows: int = 6, tile: tuple[int, int] = (2, 3)) -> Program:
    """Three writers side by side in the columns of one buffer, and a reader of all of them."""
    p = ProgramBuilder("concat")
    parts = [p.input(f"x{n}", rows, 3 + n) for n in range(3)]
    y, joined = p.output("y", rows, 12), p.temporary("joined", rows, 12)
    i, ops, start = Var("i", rows), [], 0
    for n, part in enumerate(parts):
        j = Var("j", 3 + n)
        value = Unary("tanh", load(part, i, j))
        ops.append(operator(f"write{n}", (i, j), Store(at(joined, i, Index.of(j) + start), value), tile=tile))
        start += 3 + n
    p.stage(*ops)
    j = Var("j", 12)
    value = add(load(joined, i, j), load(joined, Index.of(i) * -1 + (rows - 1), j))
    p.stage(operator("read", (i, j), Store(at(y, i, j), value), tile=tile))
    return p.build()


def recurrence(steps: int = 5, width: int = 8, tile: tuple[int, ...] = (3,)) -> Program:
    """h' = tanh(x[t] + h U) + c, c' = c * 0.5 + h': h double-buffered over trips, c private to its block."""
    p = ProgramBuilder("recurrence")
    x, u, y = p.input("x", steps, width), p.input("u", width, width), p.output("y", steps, width)
    h, c = p.temporary("h", 2, width), p.temporary("c", width)
    j, k, t = Var("j", width), Var("k", width), Var("t", steps)
    zero = (Store(at(h, 0, j), f32(0.0)), Store(at(c, j), f32(1.0)))
    p.stage(operator("start", (j,), *zero, tile=tile))
    z = Unary("tanh", add(load(x, t, j), dot(k, load(h, Index.of(t) % 2, k), load(u, k, j))))
    new_h = add(z, load(c, j))
    new_c = add(mul(load(c, j), f32(0.5)), new_h)
    stores = (
        Store(at(h, (Index.of(t) + 1) % 2, j), new_h),
        Store(at(c, j), new_c),
        Store(at(y, t, j), new_h),
    )
    p.body.append(Loop(t, (Stage((operator("cell", (j,), *stores, tile=tile),)),)))
    return p.build()


def embedding(tokens: int = 9, rows: int = 4, width: int = 6) -> Program:
    """Rows gathered by an index that is checked, and their gradient scattered back in order."""
    p = ProgramBuilder("embedding")
    table, ids = p.input("table", rows, width), p.input("ids", tokens, dtype=DType.I64)
    y, grad = p.output("y", tokens, width), p.output("grad", rows, width)
    n, j, r = Var("n", tokens), Var("j", width), Var("r", rows)
    row = Gather(load(ids, n), "index out of range in self")
    p.stage(
        operator("look_up", (n, j), Store(at(y, n, j), load(table, row, j)), tile=(4, 6)),
        operator("zero", (r, j), Store(at(grad, r, j), f32(0.0)), tile=(4, 2)),
    )
    scatter = Store(at(grad, Gather(load(ids, n), "index out of range"), j), load(y, n, j), "add")
    p.stage(operator("scatter", (n, j), scatter, tile=(tokens, 4), sequential=(n,)))
    return p.build()


def shifted_sum(size: int = 10) -> Program:
    """A three-point stencil with zeros outside, then a running sum in order: fills and a sequential
    dimension.
    """
    p = ProgramBuilder("shifted_sum")
    x, y, s = p.input("x", size), p.output("y", size), p.temporary("s", size)
    i = Var("i", size)
    near = [load(x, Index.of(i) + shift, fill=0.0) for shift in (-1, 0, 1)]
    p.stage(operator("stencil", (i,), Store(at(s, i), add(*near)), tile=(4,)))
    running = add(load(y, Index.of(i) - 1, fill=0.0), load(s, i))
    p.stage(operator("scan", (i,), Store(at(y, i), running), tile=(size,), sequential=(i,)))
    return p.build()


def in_place(size: int = 12) -> Program:
    """A chain whose temporaries share bytes: each operator overwrites the element it read."""
    p = ProgramBuilder("in_place")
    x, y = p.input("x", size), p.output("y", size)
    a, b = p.temporary("a", size), p.temporary("b", size)
    i = Var("i", size)
    p.stage(operator("first", (i,), Store(at(a, i), Unary("exp", load(x, i))), tile=(5,)))
    p.stage(operator("second", (i,), Store(at(b, i), Unary("neg", load(a, i))), tile=(4,)))
    last = add(load(b, i), load(b, Index.of(i) * -1 + (size - 1)))
    p.stage(operator("third", (i,), Store(at(y, i), last), tile=(4,)))
    program = p.build()
    assert program.arena is not None
    shared = dict.fromkeys((a, b), ARENA_HEADER)
    return replace(program, arena=ArenaPlan(shared, program.arena.size))


def mixed_types(size: int = 9) -> Program:
    """bfloat16 through float32, integers, bools, a constant, positions of extremes."""
    p = ProgramBuilder("mixed_types")
    x, n = p.input("x", size, dtype=DType.BF16), p.input("n", size, dtype=DType.I32)
    weights = p.constant("weights", torch.linspace(-1, 1, size))
    y, best = p.output("y", size, dtype=DType.BF16), p.output("best", dtype=DType.I64)
    odd, i, k = p.output("odd", size, dtype=DType.BOOL), Var("i", size), Var("k", size)
    wide = mul(Cast(load(x, i), DType.F32), load(weights, i))
    chosen = Where(Binary("gt", wide, f32(0.0)), wide, Unary("expm1", wide))
    is_odd = Binary("eq", Binary("mod", load(n, i), Const(2, DType.I32)), Const(1, DType.I32))
    p.stage(
        operator(
            "scale", (i,), Store(at(y, i), Cast(chosen, DType.BF16)), Store(at(odd, i), is_odd), tile=(4,)
        ),
        operator("best", (), Store(at(best), Reduce("argmax", (k,), load(x, k)))),
    )
    return p.build()


TYPICAL: dict[str, Callable[[], Program]] = {
    f.__name__: f for f in (mlp, softmax, concat, recurrence, embedding, shifted_sum, in_place, mixed_types)
}
"""Every typical program by name."""


# ---- random programs


def random_program(seed: int, stages: int = 4) -> Program:
    """A valid program of two-dimensional buffers, all stages followed by barriers, temporaries apart.

    Operators read any earlier buffer straight, transposed, reversed or reduced over rows or columns; stages
    hold up to three of them, side by side in slices of one buffer or in buffers of their own; a recurrence
    may follow.
    """
    return _RandomProgram(random.Random(seed)).build(stages)


@dataclass
class _RandomProgram:
    rng: random.Random
    made: int = 0

    def build(self, stages: int) -> Program:
        self.size = self.rng.choice((4, 5, 6, 9))
        self.p = ProgramBuilder("random")
        self.readable = [self.p.input(f"x{n}", self.size, self.size) for n in range(2)]
        for _ in range(stages):
            self.rng.choice((self._apart, self._apart, self._sliced, self._loop))()
        self._finish()
        return self.p.build()

    def _name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def _tile(self) -> tuple[int, int]:
        return self.rng.choice((1, 2, 3, self.size)), self.rng.choice((2, 3, self.size))

    def _domain(self, columns: int | None = None) -> tuple[Var, Var]:
        return Var("i", self.size), Var("j", columns or self.size)

    def _apart(self) -> None:
        """Operators that write a buffer each."""
        targets = [
            self.p.temporary(self._name("t"), self.size, self.size) for _ in range(self.rng.randint(1, 3))
        ]
        i, j = self._domain()
        self.p.stage(
            *(
                operator(self._name("op"), (i, j), Store(at(b, i, j), self._value(i, j)), tile=self._tile())
                for b in targets
            )
        )
        self.readable += targets

    def _sliced(self) -> None:
        """Two operators that share a buffer, by columns or by rows."""
        whole, cut = (
            self.p.temporary(self._name("t"), self.size, self.size),
            self.rng.randint(1, self.size - 1),
        )
        by_rows, ops = self.rng.random() < 0.5, []
        for start, extent in ((0, cut), (cut, self.size - cut)):
            i, j = self._domain(extent)
            here = (Index.of(j) + start, Index.of(i)) if by_rows else (Index.of(i), Index.of(j) + start)
            value = self._value(i, Index.of(j) + start)
            ops.append(operator(self._name("op"), (i, j), Store(at(whole, *here), value), tile=self._tile()))
        self.p.stage(*ops)
        self.readable.append(whole)

    def _loop(self) -> None:
        """A state double-buffered over trips, started by a stage of its own."""
        state, (i, j) = self.p.temporary(self._name("s"), 2, self.size, self.size), self._domain()
        k, t = Var("k", self.size), Var(self._name("t"), self.rng.choice((1, 2, 3, 4)))
        start = Store(at(state, 0, i, j), self._value(i, j))
        self.p.stage(operator(self._name("op"), (i, j), start, tile=self._tile()))
        old = Reduce("sum", (k,), load(state, Index.of(t) % 2, i, k))
        step = Unary("tanh", add(old, load(state, Index.of(t) % 2, j, i)))
        store = Store(at(state, (Index.of(t) + 1) % 2, i, j), step)
        self.p.body.append(Loop(t, (Stage((operator(self._name("op"), (i, j), store, tile=self._tile()),)),)))
        final, result = t.extent % 2, self.p.temporary(self._name("t"), self.size, self.size)
        copy = Store(at(result, i, j), load(state, final, i, j))
        self.p.stage(operator(self._name("op"), (i, j), copy, tile=self._tile()))
        self.readable.append(result)

    def _value(self, i: IndexLike, j: IndexLike) -> Expr:
        terms = [self._term(i, j) for _ in range(self.rng.randint(1, 3))]
        return Unary(self.rng.choice(("tanh", "sin", "neg")), add(*terms))

    def _term(self, i: IndexLike, j: IndexLike) -> Expr:
        source, k = self.rng.choice(self.readable), Var(self._name("k"), self.size)
        last = self.size - 1
        match self.rng.randrange(5):
            case 0:
                return load(source, i, j)
            case 1:
                return load(source, j, i)
            case 2:
                return load(source, last - Index.of(i), j)
            case 3:
                return Reduce("sum", (k,), load(source, i, k))
            case _:
                return Reduce("max", (k,), load(source, k, j))

    def _finish(self) -> None:
        out, (i, j) = self.p.output("y", self.size, self.size), self._domain()
        self.p.stage(
            operator(
                "finish",
                (i, j),
                Store(at(out, i, j), add(*(load(b, i, j) for b in self.readable))),
                tile=(2, 3),
            )
        )
