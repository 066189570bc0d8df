"""Checks: an index out of range, a division by zero. Nothing outside is touched, and the call returns."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.codegen.cpp import emit_program
from wolong_fx.errors import KernelCheckFailed
from wolong_fx.ir.expr import Binary, Gather, IndexValue
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.programs import ProgramBuilder, at, f32, load, operator

pytestmark = [pytest.mark.cpu, pytest.mark.avx512]
ROWS, TOKENS, WIDTH = 5, 40, 19


def look_up() -> Program:
    """Rows, then single elements of `table`, in two stages with a barrier between them."""
    p = ProgramBuilder("look_up")
    table, ids = p.input("table", ROWS, WIDTH), p.input("ids", TOKENS, dtype=DType.I64)
    columns = p.input("columns", TOKENS, dtype=DType.I32)
    y, z = p.temporary("y", TOKENS, WIDTH), p.output("z", TOKENS)
    n, j, m = Var("n", TOKENS), Var("j", WIDTH), Var("m", TOKENS)
    row = load(table, Gather(load(ids, n), "row out of range"), j)
    p.stage(operator("rows", (n, j), Store(at(y, n, j), row)))
    p.stage(
        operator(
            "elements", (m,), Store(at(z, m), load(y, m, Gather(load(columns, m), "column out of range")))
        )
    )
    return p.build()


def look_up_inputs() -> list[torch.Tensor]:
    ids = torch.arange(TOKENS) % ROWS
    return [torch.randn(ROWS, WIDTH), ids, (torch.arange(TOKENS) % WIDTH).int()]


@pytest.mark.parametrize("bad", [-1, ROWS, 1 << 40, -(1 << 63)])
@pytest.mark.parametrize("threads", [1, 2])
def test_row_out_of_range_names_its_check(run_cpp, isa, bad, threads):
    given = look_up_inputs()
    given[1][TOKENS - 1] = bad
    with pytest.raises(KernelCheckFailed, match="row out of range"):
        run_cpp(look_up(), given, isa, threads)


def test_lane_out_of_range_names_its_check(run_cpp, isa):
    given = look_up_inputs()
    given[2][TOKENS - 1] = WIDTH
    with pytest.raises(KernelCheckFailed, match="column out of range"):
        run_cpp(look_up(), given, isa)


def test_a_kernel_works_again_after_a_failed_check(run_cpp):
    good, bad = look_up_inputs(), look_up_inputs()
    bad[1][3] = 99
    for _ in range(3):
        with pytest.raises(KernelCheckFailed):
            run_cpp(look_up(), bad, "avx512")
        found = run_cpp(look_up(), good, "avx512")[0]
        wanted = good[0][good[1]].gather(1, good[2].long()[:, None])[:, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_scatter_out_of_range_stores_nothing_there(run_cpp, isa):
    p = ProgramBuilder("scatter")
    ids, y = p.input("ids", 6, dtype=DType.I64), p.output("y", 8)
    n, j = Var("n", 6), Var("j", 8)
    p.stage(operator("zero", (j,), Store(at(y, j), f32(0.0))))
    store = Store(at(y, Gather(load(ids, n), "range")), f32(1.0), "add")
    p.stage(operator("scatter", (n,), store, sequential=(n,)))
    run_cpp(p.build(), [torch.tensor([0, 7, 7, 3, 0, 0])], isa)
    with pytest.raises(KernelCheckFailed, match="range"):
        run_cpp(p.build(), [torch.tensor([0, 7, 8, 3, 0, 0])], isa)


@pytest.mark.parametrize("op", ["floordiv", "truncdiv", "mod", "fmod"])
def test_integer_division_by_zero_is_an_error_and_no_crash(run_cpp, isa, op):
    p = ProgramBuilder(f"divide_{op}")
    a, b = p.input("a", 21, dtype=DType.I64), p.input("b", 21, dtype=DType.I64)
    y, i = p.output("y", 21, dtype=DType.I64), Var("i", 21)
    p.stage(operator("divide", (i,), Store(at(y, i), Binary(op, load(a, i), load(b, i)))))
    numerators, ones = torch.arange(21) - 10, torch.ones(21, dtype=torch.int64)
    run_cpp(p.build(), [numerators, ones], isa)
    smallest = torch.full((21,), torch.iinfo(torch.int64).min)
    run_cpp(p.build(), [smallest, -ones], isa)
    ones[20] = 0
    with pytest.raises(KernelCheckFailed, match="ZeroDivisionError"):
        run_cpp(p.build(), [numerators, ones], isa)


def test_lanes_past_the_end_of_a_row_fail_no_check(run_cpp, isa):
    """Their index would be 0 - 1 and their divisor 0."""
    p = ProgramBuilder("ends")
    x, d = p.input("x", 21), p.input("d", 21, dtype=DType.I64)
    y, i = p.output("y", 21), Var("i", 21)
    place = Binary("sub", load(d, i), Binary("floordiv", load(d, i), load(d, i)))
    p.stage(operator("shift", (i,), Store(at(y, i), load(x, Gather(place, "past the end")))))
    given = [torch.randn(21), torch.arange(21) + 1]
    torch.testing.assert_close(run_cpp(p.build(), given, isa)[0], given[0])


def test_failed_checks_are_numbered_alike_whatever_the_threads(run_cpp):
    """Of several, the first in the program's order is reported."""
    given = look_up_inputs()
    given[1][0], given[2][TOKENS - 1] = -1, -1
    for threads in (1, 2):
        with pytest.raises(KernelCheckFailed, match="row out of range"):
            run_cpp(look_up(), given, "avx512", threads)


def test_equal_messages_share_a_check():
    p = ProgramBuilder("shared")
    x, y, i = p.input("x", 9), p.output("y", 9), Var("i", 9)
    gathers = [Gather(IndexValue(Index.of(i)), "range") for _ in range(2)]
    loads = [load(x, g) for g in gathers]
    p.stage(operator("double", (i,), Store(at(y, i), Binary("add", *loads)), tile=(9,)))
    assert emit_program(p.build(), "avx512", 1).checks == ("range",)
