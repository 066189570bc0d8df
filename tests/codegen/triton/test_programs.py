"""Whole programs as Triton kernels on simulated blocks, against the reference machine in float64."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.triton import StageLaunch, choose_tile, emit_program, emit_stages, tile_function
from wolong_fx.ir.expr import Binary, Cast, Gather, Reduce, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.grid_simulator import simulate
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import (
    TYPICAL,
    ProgramBuilder,
    at,
    dot,
    f32,
    inputs_of,
    load,
    operator,
    random_program,
)

LOOSE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def check(program: Program, *, blocks: int = 1, seed: int = 0, retiled: bool = False) -> None:
    """The kernel is as near to float64 as float32 sums can be."""
    if retiled:
        program = map_ops(program, with_chosen_tile)
    inputs = inputs_of(program)
    found = simulate(program, inputs, blocks=blocks, seed=seed).outputs
    wanted = run_program(program, inputs, seed=0, precise=True)
    for ours, exact in zip(found, wanted, strict=True):
        tolerance = LOOSE.get(ours.dtype, 2e-5)
        torch.testing.assert_close(
            ours.to(exact.dtype), exact, rtol=tolerance, atol=tolerance, equal_nan=True
        )


def with_chosen_tile(op: OpInst) -> OpInst:
    return OpInst(op.name, op.dims, op.stores, choose_tile(op), op.made_from)


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("retiled", [False, True], ids=["odd_tiles", "chosen_tiles"])
def test_typical_program_agrees_with_reference(name, retiled):
    check(TYPICAL[name](), blocks=2, retiled=retiled)


@pytest.mark.parametrize("seed", range(6))
def test_random_program_agrees_with_reference(seed):
    check(random_program(seed), blocks=1 + seed % 4, seed=seed, retiled=seed % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 60))
def test_many_random_programs_agree_with_reference(seed):
    check(random_program(seed), blocks=1 + seed % 6, seed=seed, retiled=seed % 3 == 0)


# ---- matrix products


def matmul(m: int, n: int, k: int, layout: str = "kn", dtype: DType = DType.F32) -> Program:
    """c = max(a @ b, row): `layout` says how b lies."""
    p = ProgramBuilder(f"matmul_{layout}")
    a, b = p.input("a", m, k, dtype=dtype), p.input("b", *((k, n) if layout == "kn" else (n, k)), dtype=dtype)
    row, c = p.input("row", n), p.output("c", m, n)
    i, j, v = Var("i", m), Var("j", n), Var("k", k)
    left, right = load(a, i, v), load(b, *((v, j) if layout == "kn" else (j, v)))
    if dtype is not DType.F32:
        left, right = Cast(left, DType.F32), Cast(right, DType.F32)
    value = Binary("max", dot(v, left, right), load(row, j))
    p.stage(operator("matmul", (i, j), Store(at(c, i, j), value)))
    return p.build()


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16], ids=str)
@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize(
    "shape", [(16, 16, 16), (33, 47, 50), (64, 32, 129), (3, 40, 20), (1, 50, 300)], ids=str
)
def test_products_of_matrices_of_any_shape_agree_with_reference(shape, layout, dtype):
    check(matmul(*shape, layout, dtype), blocks=2, retiled=True)


def test_a_factor_that_is_not_zero_outside_its_matrix_adds_nothing():
    p = ProgramBuilder("shifted")
    a, b, c = p.input("a", 20, 21), p.input("b", 21, 18), p.output("c", 20, 18)
    i, j, v = Var("i", 20), Var("j", 18), Var("k", 21)
    product = dot(v, Binary("add", load(a, i, v), f32(1.0)), Binary("add", load(b, v, j), f32(2.0)))
    p.stage(operator("shifted", (i, j), Store(at(c, i, j), product)))
    check(p.build(), retiled=True)


# ---- reductions and edges


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "argmax", "argmin"])
@pytest.mark.parametrize("extent", [1, 7, 300, 5000])
def test_reductions_of_any_length_agree_with_reference(op, extent):
    p = ProgramBuilder("reduced")
    dtype = DType.I64 if op.startswith("arg") else DType.F32
    x, y = p.input("x", 3, extent), p.output("y", 3, dtype=dtype)
    i, k = Var("i", 3), Var("k", extent)
    p.stage(operator("reduced", (i,), Store(at(y, i), Reduce(op, (k,), load(x, i, k)))))
    check(p.build(), retiled=True)


def test_a_padded_load_gives_its_fill_outside():
    p = ProgramBuilder("padded")
    x, y, i, k = p.input("x", 10), p.output("y", 12), Var("i", 12), Var("k", 3)
    window = load(x, Index.of(i) + Index.of(k) - 2, fill=float("-inf"))
    p.stage(operator("padded", (i,), Store(at(y, i), Reduce("max", (k,), window)), tile=(5,)))
    check(p.build(), blocks=2)


def test_a_gathered_position_is_used_only_where_there_is_one():
    p = ProgramBuilder("gathered")
    x, at_, y = p.input("x", 9, 5), p.input("at", 11, dtype=DType.I64), p.output("y", 11, 5)
    i, j = Var("i", 11), Var("j", 5)
    row = load(x, Gather(load(at_, i), "index out of range"), j)
    value = Where(Binary("gt", row, f32(0.0)), row, f32(0.5))
    p.stage(operator("gathered", (i, j), Store(at(y, i, j), value), tile=(3, 4)))
    check(p.build(), blocks=3)


@pytest.mark.parametrize("name", ["mlp", "recurrence", "concat"])
def test_offsets_that_need_it_are_64_bits_wide(name, monkeypatch):
    assert "wide" not in emit_program(TYPICAL[name]()).text
    monkeypatch.setattr(tile_function, "LARGE", 1)
    assert "wide = tl.full((), 0, tl.int64)" in emit_program(TYPICAL[name]()).text
    check(TYPICAL[name](), blocks=2)


# ---- a kernel for every stage


@pytest.mark.parametrize(
    "program", [*(make() for make in TYPICAL.values()), random_program(7)], ids=lambda p: p.name
)
def test_launched_stage_by_stage_a_program_gives_the_same_bits(program):
    inputs = inputs_of(program)
    together = simulate(program, inputs, blocks=3)
    one_by_one = simulate(program, inputs, source=emit_stages(program))
    for ours, theirs in zip(one_by_one.outputs, together.outputs, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_a_kernel_for_every_stage_needs_no_barrier_and_is_launched_once_a_trip():
    program = TYPICAL["recurrence"]()
    source = emit_stages(program)
    assert "grid_barrier" not in source.text
    start, loop = source.launches
    assert (start, loop.trips, len(loop.body)) == (StageLaunch("stage0", 3), 5, 1)
    assert simulate(program, inputs_of(program), source=source).counts["launches"] == 6
