"""How dots are cut into groups, and what their micro-kernels ask memory for ahead of time."""

from __future__ import annotations

import pytest

from wolong_fx.codegen.cpp import emit_program
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.tile_function import PREFETCH_STEPS
from wolong_fx.codegen.cpp.tiles import GROUP, Planner
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import ProgramBuilder, add, at, dot, load, operator

ROWS = 4


def sum_of_dots(count: int) -> Planner:
    """One row times some matrices, summed."""
    p, j = ProgramBuilder("dots"), Var("j", 64)
    x, y, total = p.input("x", 32), p.output("y", 64), None
    for n in range(count):
        w, k = p.input(f"w{n}", 32, 64), Var(f"k{n}", 32)
        one = dot(k, load(x, k), load(w, k, j))
        total = one if total is None else add(total, one)
    assert total is not None
    return Planner(operator("dots", (j,), Store(at(y, j), total)), MACHINES["avx512"])


@pytest.mark.parametrize(
    ("count", "sizes"), [(3, [3]), (GROUP, [4]), (5, [3, 2]), (6, [3, 3]), (9, [3, 3, 3])]
)
def test_dots_of_one_operand_are_grouped_evenly(count, sizes):
    assert [len(group) for group in sum_of_dots(count).groups()] == sizes


def product_and_sum(steps: int) -> Program:
    """y = a @ b + bias + c: `c` has a line for each row, `bias` is that of all rows."""
    p = ProgramBuilder("product")
    a, b, bias, c = (
        p.input("a", ROWS, steps),
        p.input("b", steps, 64),
        p.input("bias", 64),
        p.input("c", ROWS, 64),
    )
    y, i, j, k = p.output("y", ROWS, 64), Var("i", ROWS), Var("j", 64), Var("k", steps)
    product = dot(k, load(a, i, k), load(b, k, j))
    value = add(add(product, load(bias, j)), load(c, i, j))
    p.stage(operator("product", (i, j), Store(at(y, i, j), value)))
    return p.build()


def prefetches(program: Program) -> list[str]:
    """The lines that ask for memory; all stand before the first loop over a dot."""
    text = emit_program(with_chosen_tiles(program, "avx512", 2), "avx512", 2).text
    before, _, after = text[text.index("NOINLINE void tile0") :].partition("for (i64 k")
    assert "__builtin_prefetch" not in after
    return [line for line in before.splitlines() if "__builtin_prefetch" in line]


def test_what_each_row_reads_after_its_dots_is_asked_for_before_them():
    vectors = 4
    found = prefetches(product_and_sum(PREFETCH_STEPS))
    assert len(set(found)) == len(found) == ROWS * vectors


def test_short_dots_leave_no_time_to_ask_ahead():
    assert not prefetches(product_and_sum(PREFETCH_STEPS - 1))
