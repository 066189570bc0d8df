"""Rules of the reference machine: what it computes, and the faults it must not let pass."""

from dataclasses import replace

import pytest
import torch

from wolong_fx.codegen.reference import ReferenceKernel, run_program
from wolong_fx.errors import KernelCheckFailed, ProgramFault, StaleKernelInput
from wolong_fx.ir.expr import Binary, Cast, Const, Gather, IndexValue, Reduce, Unary
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import ArenaPlan, Loop, Stage, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.testing import programs
from wolong_fx.testing.programs import TYPICAL, ProgramBuilder, at, f32, inputs_of, load, operator


def results(program, inputs=None, seeds=range(4), **options):
    """The outputs, which every random order must agree on bit by bit."""
    inputs = inputs_of(program) if inputs is None else inputs
    runs = [run_program(program, inputs, seed=seed, **options) for seed in seeds]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    return runs[0]


def unary_program(op, dtype=DType.F32, size=7, tile=(3,)):
    p = ProgramBuilder(op)
    x, i = p.input("x", size, dtype=dtype), Var("i", size)
    value = Unary(op, load(x, i))
    y = p.output("y", size, dtype=value.dtype)
    p.stage(operator(op, (i,), Store(at(y, i), value), tile=tile))
    return p.build()


def test_an_mlp_is_two_matmuls():
    x, w, b, u = inputs = inputs_of(programs.mlp())
    torch.testing.assert_close(results(programs.mlp(), inputs)[0], (x @ w + b).relu() @ u)


def test_softmax_is_softmax():
    (x,) = inputs = inputs_of(programs.softmax())
    torch.testing.assert_close(results(programs.softmax(), inputs)[0], x.softmax(1))


def test_slices_of_a_concat_are_written_side_by_side():
    inputs = inputs_of(programs.concat())
    joined = torch.cat([x.tanh() for x in inputs], 1)
    torch.testing.assert_close(results(programs.concat(), inputs)[0], joined + joined.flip(0))


def test_a_loop_carries_its_state():
    x, u = inputs = inputs_of(programs.recurrence())
    h, c, steps = torch.zeros(8), torch.ones(8), []
    for row in x:
        h = torch.tanh(row + h @ u) + c
        c = c * 0.5 + h
        steps.append(h)
    torch.testing.assert_close(results(programs.recurrence(), inputs)[0], torch.stack(steps))


def test_gathered_rows_are_scattered_back_in_order():
    table, ids = inputs = inputs_of(programs.embedding())
    y, grad = results(programs.embedding(), inputs)
    assert torch.equal(y, table[ids])
    torch.testing.assert_close(grad, torch.zeros_like(table).index_add(0, ids, y))


def test_a_filled_load_gives_the_fill_outside_and_a_scan_runs_in_order():
    (x,) = inputs = inputs_of(programs.shifted_sum())
    padded = torch.nn.functional.pad(x, (1, 1))
    torch.testing.assert_close(
        results(programs.shifted_sum(), inputs)[0], (padded[:-2] + x + padded[2:]).cumsum(0)
    )


def test_half_precision_is_computed_in_float32_and_rounded_once():
    x, n = inputs = inputs_of(programs.mixed_types())
    y, best, odd = results(programs.mixed_types(), inputs)
    wide = x.float() * torch.linspace(-1, 1, 9)
    assert torch.equal(y, torch.where(wide > 0, wide, wide.expm1()).bfloat16())
    assert best == x.argmax()
    assert torch.equal(odd, n % 2 == 1)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_arithmetic_spelled_in_half_precision_rounds_after_float32(dtype):
    program = unary_program("exp", dtype)
    (x,) = inputs_of(program)
    assert torch.equal(results(program, [x])[0], x.float().exp().to(x.dtype))


def test_a_half_precision_sum_is_accumulated_in_float32():
    p = ProgramBuilder("sum")
    x, y, k = p.input("x", 4096, dtype=DType.BF16), p.output("y", dtype=DType.BF16), Var("k", 4096)
    p.stage(operator("sum", (), Store(at(y), Reduce("sum", (k,), load(x, k)))))
    assert results(p.build(), [torch.ones(4096, dtype=torch.bfloat16)])[0] == 4096


@pytest.mark.parametrize("op", ["max", "min"])
def test_an_extreme_of_anything_with_nan_is_nan(op):
    p = ProgramBuilder(op)
    x, y, k = p.input("x", 3), p.output("y"), Var("k", 3)
    p.stage(operator(op, (), Store(at(y), Reduce(op, (k,), load(x, k)))))
    assert results(p.build(), [torch.tensor([1.0, float("nan"), 2.0])])[0].isnan()


@pytest.mark.parametrize(
    "op, nothing", [("sum", 0.0), ("prod", 1.0), ("max", -float("inf")), ("min", float("inf"))]
)
def test_a_reduction_over_nothing_is_its_identity(op, nothing):
    p = ProgramBuilder(op)
    x, y, k = p.input("x", 0), p.output("y"), Var("k", 0)
    p.stage(operator(op, (), Store(at(y), Reduce(op, (k,), load(x, k)))))
    assert results(p.build())[0] == nothing


def test_argmax_counts_row_major_over_its_variables_and_takes_the_first():
    p = ProgramBuilder("argmax")
    x, y, a, b = p.input("x", 3, 4), p.output("y", dtype=DType.I64), Var("a", 3), Var("b", 4)
    p.stage(operator("argmax", (), Store(at(y), Reduce("argmax", (a, b), load(x, a, b)))))
    assert results(p.build(), [torch.tensor([[0.0, 1, 5, 2], [5, 0, 0, 0], [0, 0, 0, 5]])])[0] == 2


def test_a_constant_summed_over_a_variable_counts_every_value():
    p = ProgramBuilder("count")
    y, k = p.output("y"), Var("k", 5)
    p.stage(operator("count", (), Store(at(y), Reduce("sum", (k,), f32(2.0)))))
    assert results(p.build())[0] == 10


def test_nested_reductions_see_the_variables_around_them():
    p = ProgramBuilder("nested")
    x, y = p.input("x", 3, 4), p.output("y", 3)
    i, a, b = Var("i", 3), Var("a", 3), Var("b", 4)
    inner = Reduce("max", (b,), Binary("mul", load(x, a, b), load(x, i, b)))
    p.stage(operator("nested", (i,), Store(at(y, i), Reduce("sum", (a,), inner)), tile=(2,)))
    (x_AB,) = inputs = inputs_of(p.build())
    expected = (x_AB[:, None] * x_AB[None]).amax(2).sum(1)
    torch.testing.assert_close(results(p.build(), inputs)[0], expected)


def test_indices_are_values_too():
    p = ProgramBuilder("arange")
    y, i = p.output("y", 10, dtype=DType.I64), Var("i", 10)
    p.stage(operator("arange", (i,), Store(at(y, i), IndexValue(Index.of(i) * 3 + 1)), tile=(4,)))
    assert torch.equal(results(p.build())[0], torch.arange(1, 31, 3))


def test_an_empty_domain_does_nothing():
    p = ProgramBuilder("empty")
    x, y, i, j = p.input("x", 0, 3), p.output("y", 0, 3), Var("i", 0), Var("j", 3)
    p.stage(operator("copy", (i, j), Store(at(y, i, j), load(x, i, j)), tile=(2, 2)))
    assert results(p.build())[0].shape == (0, 3)


def test_strided_outputs_and_expanded_inputs_keep_their_strides():
    p = ProgramBuilder("strided")
    x = Buffer("x", DType.F32, (3, 4), BufferKind.INPUT, (0, 1))
    y = Buffer("y", DType.F32, (3, 4), BufferKind.OUTPUT, (1, 3))
    p.buffers += [x, y]
    i, j = Var("i", 3), Var("j", 4)
    p.stage(operator("copy", (i, j), Store(at(y, i, j), load(x, i, j)), tile=(2, 3)))
    row = torch.randn(4).expand(3, 4)
    (out,) = results(p.build(), [row])
    assert out.stride() == (1, 3)
    assert torch.equal(out, row)


def test_precise_runs_compute_in_float64():
    program = programs.softmax()
    (x,) = inputs_of(program)
    (y,) = results(program, [x], precise=True)
    assert y.dtype is torch.float64
    torch.testing.assert_close(y, x.double().softmax(1), rtol=1e-14, atol=0)
    (wide,) = results(program, [x.double()], precise=True)
    assert torch.equal(wide, y)


def test_one_physical_block_gives_the_same_bits_as_many():
    for make in TYPICAL.values():
        program = make()
        inputs = inputs_of(program)
        for a, b in zip(
            results(program, inputs, threads=1), results(program, inputs, threads=7), strict=True
        ):
            assert torch.equal(a, b)


def test_an_owner_decides_where_blocks_run():
    seen = []

    def owner(op, block):
        seen.append((op.name, block))
        return block % 2

    results(programs.mlp(), threads=2, owner=owner, seeds=(0,))
    assert ("hidden", 11) in seen


def test_a_kernel_is_launched_as_a_compiled_one():
    kernel = ReferenceKernel(programs.mlp())
    inputs = inputs_of(programs.mlp())
    assert torch.equal(kernel(*inputs)[0], kernel.launch(inputs)[0])


# ---- faults


def test_an_index_out_of_range_raises_the_message_of_its_check():
    table, ids = inputs_of(programs.embedding())
    ids[3] = 4
    with pytest.raises(IndexError, match="index out of range in self") as caught:
        run_program(programs.embedding(), [table, ids])
    assert isinstance(caught.value, KernelCheckFailed)


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(StaleKernelInput, match="input 'x'"):
        run_program(programs.softmax(), [torch.zeros(5, 11, dtype=torch.float64)])
    with pytest.raises(StaleKernelInput, match="1 tensors"):
        run_program(programs.softmax(), [])


def one_stage(*stores, inputs=(("x", 6),), temporaries=(), extra=()):
    p = ProgramBuilder("faulty")
    buffers = {name: p.input(name, n) for name, n in inputs}
    buffers["y"] = p.output("y", 6)
    buffers |= {name: p.temporary(name, n) for name, n in temporaries}
    i = Var("i", 6)
    for op in extra:
        p.stage(op(buffers, i))
    p.stage(operator("op", (i,), *(s(buffers, i) for s in stores), tile=(4,)))
    return p.build()


def test_a_read_of_what_nobody_wrote_is_a_fault():
    program = one_stage(lambda b, i: Store(at(b["y"], i), load(b["t"], i)), temporaries=(("t", 6),))
    with pytest.raises(ProgramFault, match=r"nobody wrote .* 'op', buffer 't'"):
        run_program(program, inputs_of(program))


def test_adding_to_what_nobody_wrote_is_a_fault():
    program = one_stage(lambda b, i: Store(at(b["y"], i), load(b["x"], i), "add"))
    with pytest.raises(ProgramFault, match="nobody wrote"):
        run_program(program, inputs_of(program))


def test_an_output_left_unwritten_is_a_fault():
    program = one_stage(lambda b, i: Store(at(b["y"], Index.of(i) // 2), f32(0.0)))
    with pytest.raises(ProgramFault, match="stored twice"):
        run_program(program, inputs_of(program))
    p = ProgramBuilder("half")
    y, i = p.output("y", 6), Var("i", 4)
    p.stage(operator("op", (i,), Store(at(y, i), f32(0.0))))
    with pytest.raises(ProgramFault, match="left 2 elements of an output unwritten at output 'y'"):
        run_program(p.build(), [])


@pytest.mark.parametrize("shift", [-1, 1])
def test_leaving_a_buffer_is_a_fault(shift):
    program = one_stage(lambda b, i: Store(at(b["y"], i), load(b["x"], Index.of(i) + shift)))
    with pytest.raises(ProgramFault, match="outside dimension 0"):
        run_program(program, inputs_of(program))


def test_bytes_taken_over_by_another_buffer_are_a_fault():
    program = programs.mlp()
    assert program.arena is not None
    (h,) = program.arena.offsets
    rival = Buffer.contiguous("rival", DType.F32, (7, 13), BufferKind.TEMPORARY)
    i, j = Var("i", 7), Var("j", 13)
    clobber = Stage((operator("clobber", (i, j), Store(at(rival, i, j), f32(1.0))),))
    spoilt = replace(
        program,
        buffers=(*program.buffers, rival),
        body=(program.body[0], clobber, program.body[1]),
        arena=ArenaPlan({h: 4096, rival: 4096}, program.arena.size),
    )
    with pytest.raises(ProgramFault, match="another buffer overwrote"):
        run_program(spoilt, inputs_of(spoilt))


def test_a_dead_buffer_is_poisoned_between_stages():
    """`c` is placed where `a` died; a stray reader must not find what `a` left."""
    p = ProgramBuilder("dead")
    y, i = p.output("y", 4), Var("i", 4)
    a, c = p.temporary("a", 4), p.temporary("c", 4)
    p.stage(operator("a", (i,), Store(at(a, i), f32(1.0))))
    p.stage(operator("use", (i,), Store(at(y, i), load(a, i))))
    p.stage(operator("stray", (i,), Store(at(y, i), load(c, i))))
    program = replace(p.build(), arena=ArenaPlan({a: 4096, c: 4096}, 8192))
    with pytest.raises(ProgramFault, match="buffer 'c'"):
        run_program(program, [])


def depends_on_order(program):
    runs = []
    for seed in range(10):
        try:
            runs.append(run_program(program, inputs_of(program), seed=seed)[0])
        except ProgramFault:
            return True
    return not all(torch.equal(run, runs[0]) for run in runs)


def test_a_missing_barrier_shows_in_some_order():
    program = programs.mlp()
    racy = replace(program, body=(replace(program.body[0], barrier=False), program.body[1]))
    assert depends_on_order(racy)


def test_every_trip_of_a_loop_ends_with_its_barrier():
    program = programs.recurrence()
    start, loop = program.body
    assert isinstance(loop, Loop)
    (stage,) = loop.body
    racy = replace(program, body=(start, Loop(loop.var, (replace(stage, barrier=False),))))
    assert depends_on_order(racy)


def test_large_blocks_are_run_in_pieces_with_the_same_result(monkeypatch):
    from wolong_fx.codegen.reference import operator_run

    program = programs.softmax(rows=6, columns=50, tile=(6, 50))
    whole = results(program)[0]
    monkeypatch.setattr(operator_run, "PIECE", 64)
    torch.testing.assert_close(results(program)[0], whole)


def test_casts_are_those_of_torch():
    p = ProgramBuilder("cast")
    x, i = p.input("x", 6), Var("i", 6)
    targets = [DType.I32, DType.BOOL, DType.F16, DType.I64]
    ys = [p.output(f"y{d}", 6, dtype=d) for d in targets]
    stores = [Store(at(y, i), Cast(load(x, i), d)) for y, d in zip(ys, targets, strict=True)]
    p.stage(operator("cast", (i,), *stores, tile=(4,)))
    values = torch.tensor([0.0, -0.0, 1.9, -1.9, 65504.0, 0.3])
    expected = [values.int(), values.bool(), values.half(), values.long()]
    for got, wanted in zip(results(p.build(), [values]), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("how, expected", [("add", 7.0), ("mul", 10.0), ("max", 5.0), ("min", 2.0)])
def test_an_accumulating_store_combines_with_what_is_there(how, expected):
    p = ProgramBuilder("accumulate")
    y = p.output("y")
    p.stage(operator("set", (), Store(at(y), f32(2.0))))
    p.stage(operator("combine", (), Store(at(y), f32(5.0), how)))
    assert results(p.build())[0] == expected


def test_gathers_may_be_computed():
    p = ProgramBuilder("computed")
    x, ids, y = p.input("x", 6), p.input("ids", 5, dtype=DType.I32), p.output("y", 5)
    i = Var("i", 5)
    where = Gather(Binary("add", load(ids, i), Const(1, DType.I32)), "too far")
    p.stage(operator("take", (i,), Store(at(y, i), load(x, where)), tile=(2,)))
    values, positions = inputs_of(p.build())
    assert torch.equal(results(p.build(), [values, positions])[0], values[positions + 1])
