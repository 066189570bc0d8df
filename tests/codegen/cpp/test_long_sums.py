"""Long sums are sums of sums: right for every number of terms, and nearer to the truth than one chain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wolong_fx.codegen.cpp.reductions import CHAIN, LONGEST_CHAIN, _blocks, _chain_of
from wolong_fx.ir.expr import Reduce
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.programs import ProgramBuilder, at, load, mul, operator


def product(steps: tuple[int, ...], rows: int, columns: int, dtype: DType = DType.F32) -> Program:
    """y[i, j] = sum over all steps of a[steps, i] * b[steps, j]."""
    p = ProgramBuilder("product")
    over = tuple(Var(f"k{n}", extent) for n, extent in enumerate(steps))
    i, j = Var("i", rows), Var("j", columns)
    a, b = p.input("a", *steps, rows, dtype=dtype), p.input("b", *steps, columns, dtype=dtype)
    terms = mul(load(a, *over, i), load(b, *over, j))
    store = Store(at(p.output("y", rows, columns, dtype=dtype), i, j), Reduce("sum", over, terms))
    p.stage(operator("product", (i, j), store))
    return p.build()


@pytest.mark.parametrize(
    "steps", [(LONGEST_CHAIN,), (LONGEST_CHAIN + 1,), (1301,), (20, 16), (7, 191), (263, 1), (3, 5, 29)]
)
def test_a_long_sum_of_products_has_every_term_once(check_cpp, isa, steps):
    check_cpp(product(steps, rows=7, columns=37), isa, rtol=1e-4, atol=1e-4)


def test_a_long_sum_of_doubles(check_cpp, isa):
    check_cpp(product((19, 31), rows=5, columns=24, dtype=DType.F64), isa, rtol=1e-12, atol=1e-12)


def test_rounding_errors_do_not_grow_with_the_whole_sum(run_cpp, isa):
    """A chain of 20,000 equal terms drifts by many units of its last place, always the same way."""
    terms = 20_000
    program = product((terms,), rows=6, columns=16)
    inputs = [torch.full((terms, 6), 0.1), torch.ones(terms, 16)]
    (found,) = run_cpp(program, inputs, isa)
    one_chain = torch.tensor(0.0)
    for _ in range(terms):
        one_chain += torch.tensor(0.1)
    exact = inputs[0].double().sum(0)[0]
    error = (found.double() - exact).abs().max() / exact
    assert error < (one_chain.double() - exact).abs() / exact / 10


@given(st.lists(st.integers(1, 600), min_size=1, max_size=3))
def test_chains_cut_every_sum_into_pieces_that_follow_each_other(extents):
    depth, steps = _chain_of(extents)
    pieces = _blocks(extents[depth], steps)
    ends = [first + trips * size for first, trips, size in pieces]
    assert [first for first, _, _ in pieces] == [0, *ends[:-1]]
    assert ends[-1] == extents[depth]
    inside = torch.Size(extents[depth + 1 :]).numel()
    assert steps == 1 or steps * inside <= CHAIN
