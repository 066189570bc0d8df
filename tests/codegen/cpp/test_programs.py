"""Whole programs as C++ kernels against the reference machine in float64: typical, random, and one for each
path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from wolong_fx.ir.expr import Binary, Cast, Const, Expr, Gather, IndexValue, Reduce, Unary, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Loop, Program, Stage, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import (
    TYPICAL,
    ProgramBuilder,
    add,
    at,
    dot,
    f32,
    inputs_of,
    load,
    mul,
    operator,
    random_program,
)


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("retiled", [False, True], ids=["odd_tiles", "chosen_tiles"])
def test_typical_program_agrees_with_reference(check_cpp, isa, name, retiled):
    check_cpp(TYPICAL[name](), isa, retiled=retiled)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.cpu
@pytest.mark.avx512
def test_random_program_agrees_with_reference(check_cpp, seed):
    check_cpp(random_program(seed), "avx512", retiled=seed % 2 == 0)


# ---- dots


def matmul(
    m: int, n: int, k: int, layout: str = "kn", dtype: DType = DType.F32, shape: tuple[int, ...] = ()
) -> Program:
    """c = tanh(a @ b + row): `layout` says how b lies; `shape` are batch dimensions of all three."""
    p = ProgramBuilder(f"matmul_{layout}")
    a = p.input("a", *shape, m, k, dtype=dtype)
    b = p.input("b", *shape, *((k, n) if layout == "kn" else (n, k)), dtype=dtype)
    row, c = p.input("row", n, dtype=dtype), p.output("c", *shape, m, n, dtype=dtype)
    batch = [Var(f"d{x}", e) for x, e in enumerate(shape)]
    i, j, v = Var("i", m), Var("j", n), Var("k", k)
    wide = DType.F64 if dtype is DType.F64 else DType.F32
    factors = [load(a, *batch, i, v), load(b, *batch, *((v, j) if layout == "kn" else (j, v)))]
    x, y = (f if dtype is wide else Cast(f, wide) for f in factors)
    offset = load(row, j) if dtype is wide else Cast(load(row, j), wide)
    value: Expr = Unary("tanh", add(dot(v, x, y), offset))
    value = value if dtype is wide else Cast(value, dtype)
    p.stage(operator("matmul", (*batch, i, j), Store(at(c, *batch, i, j), value)))
    return p.build()


@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize(
    "shape", [(1, 70, 33), (1, 16, 64), (2, 1, 40), (7, 50, 19), (23, 130, 5), (13, 3, 1)]
)
def test_matmul_of_any_shape(check_cpp, isa, layout, shape):
    check_cpp(matmul(*shape, layout=layout), isa)


@pytest.mark.parametrize("dtype", [DType.F64, DType.BF16, DType.F16], ids=str)
@pytest.mark.parametrize("layout", ["kn", "nk"])
def test_matmul_of_other_floats(check_cpp, isa, layout, dtype):
    check_cpp(matmul(9, 37, 21, layout, dtype), isa)


@pytest.mark.cpu
@pytest.mark.avx512
def test_batched_matmul_keeps_batches_apart(check_cpp):
    check_cpp(matmul(5, 20, 9, shape=(2, 3)), "avx512")
    check_cpp(matmul(5, 20, 9, "nk", shape=(4,)), "avx512")


def test_rows_are_taken_along_the_dimension_that_shares_weights(check_cpp, isa):
    """(B, 1, N) linear layer: the row dimension has one point, the batch has many."""
    p = ProgramBuilder("linear3")
    x, w, y = p.input("x", 9, 1, 12), p.input("w", 20, 12), p.output("y", 9, 1, 20)
    b, r, j, k = Var("b", 9), Var("r", 1), Var("j", 20), Var("k", 12)
    p.stage(operator("linear", (b, r, j), Store(at(y, b, r, j), dot(k, load(x, b, r, k), load(w, j, k)))))
    check_cpp(p.build(), isa)


# ---- recurrences


def lstm(steps: int, batch: int, width: int, layout: str) -> Program:
    p = ProgramBuilder(f"lstm_{layout}")
    x, h0, c0 = p.input("x", steps, batch, width), p.input("h0", batch, width), p.input("c0", batch, width)
    ws = [p.input(f"w{g}", width, width) for g in range(4)]
    us = [p.input(f"u{g}", width, width) for g in range(4)]
    out, z0 = p.output("out", steps, batch, width), p.temporary("z0", steps, batch, 4, width)
    h, c = p.temporary("h", 2, batch, width), p.temporary("c", batch, width)
    n, r, j, t = Var("n", steps * batch), Var("r", batch), Var("j", width), Var("t", steps)
    step, row = Index.of(n) // batch, Index.of(n) % batch

    def product(left: Expr, w: object, k: Var) -> Expr:
        return dot(k, left, load(w, k, j) if layout == "kn" else load(w, j, k))  # type: ignore[arg-type]

    ks = [Var(f"k{g}", width) for g in range(8)]
    inputs = [
        Store(at(z0, step, row, g, j), product(load(x, step, row, ks[g]), ws[g], ks[g])) for g in range(4)
    ]
    p.stage(
        operator("project", (n, j), *inputs),
        operator("start", (r, j), Store(at(h, 0, r, j), load(h0, r, j)), Store(at(c, r, j), load(c0, r, j))),
    )
    before, after = Index.of(t) % 2, (Index.of(t) + 1) % 2
    z = [
        add(load(z0, t, r, g, j), product(load(h, before, r, ks[4 + g]), us[g], ks[4 + g])) for g in range(4)
    ]
    kept = mul(Unary("sigmoid", z[1]), load(c, r, j))
    new_c = add(kept, mul(Unary("sigmoid", z[0]), Unary("tanh", z[2])))
    new_h = mul(Unary("sigmoid", z[3]), Unary("tanh", new_c))
    stores = [
        Store(at(b, *i), v)
        for b, i, v in ((c, (r, j), new_c), (h, (after, r, j), new_h), (out, (t, r, j), new_h))
    ]
    p.body.append(Loop(t, (Stage((operator("cell", (r, j), *stores),)),)))
    return p.build()


@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize("batch", [1, 5])
def test_lstm_rolled_into_a_loop(check_cpp, isa, layout, batch):
    check_cpp(lstm(6, batch, 21, layout), isa)


def stack() -> Program:
    """Two loops, one around the other: h[l] of layer l takes part in the next step of layer l."""
    layers, steps, width = 3, 4, 18
    p = ProgramBuilder("stack")
    x, u, y = p.input("x", steps, width), p.input("u", layers, width, width), p.output("y", steps, width)
    h, z = p.temporary("h", layers, 2, width), p.temporary("z", layers + 1, width)
    layer, t, j, k, n = Var("l", layers), Var("t", steps), Var("j", width), Var("k", width), Var("n", layers)
    p.stage(operator("zero", (n, j), Store(at(h, n, 0, j), f32(0.0))))
    feed = Stage((operator("feed", (j,), Store(at(z, 0, j), load(x, t, j))),))
    before, after = Index.of(t) % 2, (Index.of(t) + 1) % 2
    new = Unary("tanh", add(load(z, layer, j), dot(k, load(h, layer, before, k), load(u, layer, k, j))))
    stores = Store(at(h, layer, after, j), new), Store(at(z, Index.of(layer) + 1, j), new)
    emit = Stage((operator("emit", (j,), Store(at(y, t, j), load(z, layers, j))),))
    p.body.append(Loop(t, (feed, Loop(layer, (Stage((operator("cell", (j,), *stores),)),)), emit)))
    return p.build()


@pytest.mark.cpu
@pytest.mark.avx512
def test_stacked_recurrences_in_nested_loops(check_cpp):
    check_cpp(stack(), "avx512")


@pytest.mark.cpu
@pytest.mark.avx512
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "program", [lstm(7, 1, 70, "kn"), lstm(4, 5, 70, "nk"), stack()], ids=lambda p: p.name
)
def test_trips_that_run_backwards_give_the_same_bits(run_cpp, program, threads):
    inputs = inputs_of(program)
    forwards = run_cpp(program, inputs, "avx512", threads)
    backwards = run_cpp(program, inputs, "avx512", threads, core_cache_bytes=0)
    assert all(map(torch.equal, forwards, backwards))


# ---- reductions


def layer_norm(rows: int, width: int) -> Program:
    """All in one operator: reductions of rows around which nothing of a lane is needed."""
    p = ProgramBuilder("layer_norm")
    x, w, y = p.input("x", rows, width), p.input("w", width), p.output("y", rows, width)
    i, j, k, m = Var("i", rows), Var("j", width), Var("k", width), Var("m", width)
    mean = mul(Reduce("sum", (k,), load(x, i, k)), f32(1 / width))
    off = Binary("sub", load(x, i, m), mean)
    variance = mul(Reduce("sum", (m,), mul(off, off)), f32(1 / width))
    scale = Unary("rsqrt", add(variance, f32(1e-5)))
    value = mul(mul(Binary("sub", load(x, i, j), mean), scale), load(w, j))
    p.stage(operator("norm", (i, j), Store(at(y, i, j), value)))
    return p.build()


@pytest.mark.parametrize("shape", [(5, 70), (1, 300), (40, 7)])
def test_layer_norm_in_one_operator(check_cpp, isa, shape):
    check_cpp(layer_norm(*shape), isa)


@pytest.mark.cpu
@pytest.mark.avx512
def test_softmax_in_one_operator_with_infinities(check_cpp):
    rows, width = 6, 45
    p = ProgramBuilder("softmax1")
    x, y = p.input("x", rows, width), p.output("y", rows, width)
    i, j, k, m = Var("i", rows), Var("j", width), Var("k", width), Var("m", width)
    top = Reduce("max", (k,), load(x, i, k))
    total = Reduce("sum", (m,), Unary("exp", Binary("sub", load(x, i, m), top)))
    value = Binary("div", Unary("exp", Binary("sub", load(x, i, j), top)), total)
    p.stage(operator("softmax", (i, j), Store(at(y, i, j), value)))
    given = inputs_of(p.build())[0]
    given[1, 3:9], given[2, 4], given[3] = -torch.inf, torch.inf, -torch.inf
    given[4, 5] = torch.nan
    check_cpp(p.build(), "avx512", [given])


KINDS = [DType.F32, DType.F64, DType.BF16, DType.I64, DType.I32, DType.I8, DType.U8, DType.BOOL]


def reductions(dtype: DType, rows: int, width: int) -> Program:
    """Every reduction, of rows and of columns and of all."""
    p = ProgramBuilder(f"reductions_{dtype}")
    x = p.input("x", rows, width, dtype=dtype)
    i, j, k, m, ops = Var("i", rows), Var("j", width), Var("k", width), Var("m", rows), []
    for op in (
        ("sum", "prod", "max", "min", "argmax", "argmin")
        if dtype is not DType.BOOL
        else ("any", "all", "argmax")
    ):
        for name, domain, over, where in (
            ("rows", (i,), (k,), (i, k)),
            ("columns", (j,), (m,), (m, j)),
            ("all", (), (m, k), (m, k)),
        ):
            value = Reduce(op, over, load(x, *where))
            y = p.output(f"{op}_{name}", *(v.extent for v in domain), dtype=value.dtype)
            ops.append(operator(f"{op}_{name}", domain, Store(at(y, *domain), value)))
    p.stage(*ops)
    return p.build()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_reductions_of_every_type(run_cpp, isa, dtype):
    from wolong_fx.codegen.reference.machine import run_program

    program = reductions(dtype, 37, 43)
    given = inputs_of(program)[0]
    if dtype.is_float:
        given = 1 + given / 16
        given[3, 7] = given[20, 7] = given[20, 9] = float("nan")
        given[5, 1] = given[5, 30] = given[30, 1] = 9.0
        given[8, 2], given[9, 2] = float("inf"), float("-inf")
    found, wanted = run_cpp(program, [given], isa), run_program(program, [given], seed=0)
    for op, ours, torchs in zip(program.ops(), found, wanted, strict=True):
        rtol = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}.get(ours.dtype, 0)
        torch.testing.assert_close(
            ours, torchs, rtol=rtol, atol=0, equal_nan=True, msg=lambda m, op=op: f"{op.name}: {m}"
        )


@pytest.mark.cpu
@pytest.mark.avx512
def test_reduction_inside_a_reduction(check_cpp):
    """y[i, j] = sum_k a[i, k] * max_m b[k, m] * b[m, j]: the inner one depends on the outer one's
    variable.
    """
    p = ProgramBuilder("nested")
    a, b, y = p.input("a", 4, 9), p.input("b", 9, 9), p.output("y", 4, 9)
    i, j, k, m = Var("i", 4), Var("j", 9), Var("k", 9), Var("m", 9)
    inner = Reduce("max", (m,), mul(load(b, k, m), load(b, m, j)))
    p.stage(operator("outer", (i, j), Store(at(y, i, j), dot(k, load(a, i, k), inner))))
    check_cpp(p.build(), "avx512")


@pytest.mark.cpu
@pytest.mark.avx512
def test_reduction_over_nothing_is_its_identity(run_cpp):
    p = ProgramBuilder("nothing")
    x, i, k = p.input("x", 3, 0), Var("i", 3), Var("k", 0)
    wanted = {"sum": 0.0, "prod": 1.0, "max": -torch.inf, "min": torch.inf}
    stores = [Store(at(p.output(op, 3), i), Reduce(op, (k,), load(x, i, k))) for op in wanted]
    p.stage(operator("reduce", (i,), *stores))
    found = run_cpp(p.build(), [torch.empty(3, 0)], "avx512")
    assert [f.tolist() for f in found] == [[v] * 3 for v in wanted.values()]


# ---- domains and index maps


def test_convolution_with_padding(check_cpp, isa):
    p = ProgramBuilder("convolution")
    x, w, y = p.input("x", 2, 3, 9, 11), p.input("w", 4, 3, 3, 3), p.output("y", 2, 4, 9, 11)
    n, o, r, j = Var("n", 2), Var("o", 4), Var("r", 9), Var("j", 11)
    c, a, b = Var("c", 3), Var("a", 3), Var("b", 3)
    image = load(x, n, c, Index.of(r) + a - 1, Index.of(j) + b - 1, fill=0.0)
    value = Reduce("sum", (c, a, b), mul(image, load(w, o, c, a, b)))
    p.stage(operator("convolve", (n, o, r, j), Store(at(y, n, o, r, j), value)))
    check_cpp(p.build(), isa)


def test_index_maps_of_views(check_cpp, isa):
    """Flips, steps, reshapes that split and join, transposes, broadcasts, and stores to every other
    element.
    """
    p = ProgramBuilder("views")
    x, y = p.input("x", 12, 20), p.output("y", 240)
    flat, q = Var("f", 240), Index.of(Var("f", 240))
    reshaped = load(x, 11 - q // 20, q % 20)
    joined = load(x, q % 12, (q // 12) % 20)
    split = load(x, (q // 4) % 12, (q * 3) % 20)
    p.stage(operator("flat", (flat,), Store(at(y, q), add(reshaped, joined, split))))
    z, i, j = p.output("z", 20, 24), Var("i", 20), Var("j", 12)
    even, odd = Index.of(j) * 2, Index.of(j) * 2 + 1
    p.stage(
        operator("even", (i, j), Store(at(z, i, even), load(x, j, i))),
        operator("odd", (i, j), Store(at(z, i, odd), load(x, 11 - Index.of(j), 19 - Index.of(i)))),
    )
    check_cpp(p.build(), isa)


@pytest.mark.cpu
@pytest.mark.avx512
def test_strided_inputs_and_outputs(run_cpp):
    """Strides come from the buffers: a transposed input, an expanded one, a transposed output."""
    p = ProgramBuilder("strided")
    i, j = Var("i", 5), Var("j", 18)
    x, e, y = p.input("x", 5, 18), p.input("e", 5, 18), p.output("y", 5, 18)
    strides = {x: (1, 5), e: (1, 0), y: (1, 5)}
    x, e, y = p.buffers = [replace(b, strides=strides[b]) for b in p.buffers]
    p.stage(operator("add", (i, j), Store(at(y, i, j), add(load(x, i, j), load(e, i, j)))))
    a, b = torch.randn(18, 5).t(), torch.randn(5, 1).expand(5, 18)
    found = run_cpp(p.build(), [a, b], "avx512")[0]
    assert found.stride() == (1, 5)
    torch.testing.assert_close(found, a + b)


def test_domains_of_every_rank_and_without_points(check_cpp, isa):
    p = ProgramBuilder("ranks")
    for rank in range(6):
        shape = (2, 3, 1, 2, 5)[:rank]
        x, y = p.input(f"x{rank}", *shape), p.output(f"y{rank}", *shape)
        dims = [Var(f"d{n}", e) for n, e in enumerate(shape)]
        p.stage(operator(f"rank{rank}", dims, Store(at(y, *dims), Unary("neg", load(x, *dims)))))
    x, y, dims = p.input("none", 3, 0), p.output("nowhere", 3, 0), (Var("i", 3), Var("j", 0))
    p.stage(operator("empty", dims, Store(at(y, *dims), load(x, *dims))))
    check_cpp(p.build(), isa)


def test_index_values_and_masks(check_cpp, isa):
    """Causal mask and arange: indices as values, in lanes and across rows."""
    p = ProgramBuilder("mask")
    x, y, n = p.input("x", 7, 19), p.output("y", 7, 19), p.output("n", 7, 19, dtype=DType.I64)
    i, j = Var("i", 7), Var("j", 19)
    seen = Binary("le", IndexValue(Index.of(j)), IndexValue(Index.of(i) * 2))
    p.stage(
        operator("mask", (i, j), Store(at(y, i, j), Where(seen, load(x, i, j), f32(-1.0)))),
        operator("count", (i, j), Store(at(n, i, j), IndexValue(Index.of(i) * 19 + Index.of(j) // 2 + 1))),
    )
    check_cpp(p.build(), isa)


# ---- gathers, scatters, order


def test_gathers_in_rows_and_lanes(check_cpp, isa):
    p = ProgramBuilder("gathers")
    table, ids, lanes = (
        p.input("table", 4, 4),
        p.input("ids", 9, dtype=DType.I64),
        p.input("l", 9, 21, dtype=DType.I32),
    )
    y, z, i, j = p.output("y", 9, 21), p.output("z", 9, 4), Var("i", 9), Var("j", 21)
    c = Var("c", 4)
    both = load(table, Gather(load(ids, i), "row"), Gather(load(lanes, i, j), "column"))
    p.stage(
        operator("both", (i, j), Store(at(y, i, j), both)),
        operator("rows", (i, c), Store(at(z, i, c), load(table, Gather(load(ids, i), "row"), c))),
    )
    check_cpp(p.build(), isa)


@pytest.mark.parametrize("accumulate", ["add", "mul", "max", "min"])
def test_scatter_accumulates_in_order(check_cpp, isa, accumulate):
    p = ProgramBuilder(f"scatter_{accumulate}")
    x, ids, y = p.input("x", 30, 19), p.input("ids", 30, dtype=DType.I64), p.output("y", 4, 19)
    r, n, j = Var("r", 4), Var("n", 30), Var("j", 19)
    p.stage(operator("start", (r, j), Store(at(y, r, j), f32(1.0))))
    store = Store(at(y, Gather(load(ids, n), "range"), j), load(x, n, j), accumulate)
    p.stage(operator("scatter", (n, j), store, sequential=(n,)))
    check_cpp(p.build(), isa)


@pytest.mark.cpu
@pytest.mark.avx512
def test_later_points_of_a_sequential_dimension_see_earlier_stores(check_cpp):
    """Running sums along rows, along lanes, and a recurrence that rereads what the first point stored."""
    p = ProgramBuilder("scans")
    x, down, along = p.input("x", 13, 21), p.output("down", 13, 21), p.output("along", 13, 21)
    i, j, k = Var("i", 13), Var("j", 21), Var("k", 3)
    above = load(down, Index.of(i) - 1, j, fill=0.0)
    left = load(along, i, Index.of(j) - 1, fill=0.0)
    p.stage(
        operator("down", (i, j), Store(at(down, i, j), add(above, load(x, i, j))), sequential=(i,)),
        operator("along", (i, j), Store(at(along, i, j), add(left, load(x, i, j))), sequential=(j,)),
    )
    state, y = p.temporary("state", 21), p.output("y", 13, 21)
    p.stage(operator("zero", (j,), Store(at(state, j), f32(1.0))))
    total = Reduce("sum", (k,), mul(load(state, j), load(x, i, k)))
    value = Unary("tanh", add(total, load(state, j)))
    p.stage(operator("carry", (i, j), Store(at(state, j), value), Store(at(y, i, j), value), sequential=(i,)))
    check_cpp(p.build(), "avx512")


@pytest.mark.cpu
@pytest.mark.avx512
def test_a_swap_reads_before_it_writes(check_cpp):
    """Both stores' values are known before the first store happens."""
    p = ProgramBuilder("swap")
    x, y, a, b = p.input("x", 40), p.output("y", 40), p.temporary("a", 40), p.temporary("b", 40)
    i = Var("i", 40)
    p.stage(operator("start", (i,), Store(at(a, i), load(x, i)), Store(at(b, i), Unary("neg", load(x, i)))))
    p.stage(operator("swap", (i,), Store(at(a, i), load(b, i)), Store(at(b, i), load(a, i))))
    p.stage(operator("end", (i,), Store(at(y, i), Binary("sub", mul(load(a, i), f32(2.0)), load(b, i)))))
    check_cpp(p.build(), "avx512")


@pytest.mark.cpu
@pytest.mark.avx512
@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (2, 20), (5, 16), (11, 50)])
def test_any_tile_gives_the_same_result(check_cpp, tile):
    def tiled(make: Callable[[], Program]) -> Program:
        return map_ops(make(), lambda op: replace(op, tile=tile))

    check_cpp(tiled(lambda: matmul(11, 50, 9)), "avx512", retiled=False)
    check_cpp(tiled(lambda: matmul(11, 50, 9, "nk")), "avx512", retiled=False)
    check_cpp(tiled(lambda: layer_norm(11, 50)), "avx512", retiled=False)


@pytest.mark.cpu
@pytest.mark.avx512
def test_constants_are_read_from_the_kernels_own_memory(check_cpp):
    p = ProgramBuilder("constants")
    x, y, i = p.input("x", 33), p.output("y", 33), Var("i", 33)
    a = p.constant("a", torch.linspace(-1, 1, 33))
    n = p.constant("n", torch.arange(33), DType.I64)
    number = Cast(load(n, i), DType.F32)
    p.stage(
        operator(
            "sum", (i,), Store(at(y, i), add(load(x, i), load(a, i), mul(number, Const(2.0, DType.F32))))
        )
    )
    check_cpp(p.build(), "avx512")
