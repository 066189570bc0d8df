"""How tiles are chosen and tile functions shared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wolong_fx.codegen.cpp import choose_tile, emit_program
from wolong_fx.codegen.cpp.tables import Tables
from wolong_fx.ir.expr import Unary
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import TYPICAL, ProgramBuilder, at, dot, load, operator


def test_equal_bindings_share_a_place_in_the_table():
    tables = Tables(2)
    assert tables.bind([(0, 64), (2, 0)]) == tables.bind([(0, 64), (2, 0)])
    assert tables.bind([(0, 128), (2, 0)]) != tables.bind([(0, 64), (2, 0)])


def steps(count: int) -> Program:
    """h = tanh(h @ w), unrolled: the same operator over and over on other memory."""
    p = ProgramBuilder("steps")
    h, w, i, j, k = p.input("h", 3, 20), p.input("w", 20, 20), Var("i", 3), Var("j", 20), Var("k", 20)
    for step in range(count):
        out = p.output("y", 3, 20) if step == count - 1 else p.temporary(f"h{step}", 3, 20)
        value = Unary("tanh", dot(k, load(h, i, k), load(w, k, j)))
        p.stage(operator(f"step{step}", (i, j), Store(at(out, i, j), value)))
        h = out
    return with_chosen_tiles(p.build(), "avx512", 2)


def test_unrolled_steps_share_one_tile_function():
    few, many = (emit_program(steps(n), "avx512", 2) for n in (3, 40))
    assert few.functions == many.functions == 1
    assert len(many.text) - len(few.text) < 40 * 200


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_tiles_cover_sequential_dimensions_whole(name, threads):
    for op in TYPICAL[name]().ops():
        tile = choose_tile(op, "avx512", threads)
        assert len(tile) == len(op.dims)
        for size, dim in zip(tile, op.dims, strict=True):
            assert 1 <= size <= max(dim.extent, 1)
            assert not dim.sequential or size == dim.extent


def test_large_operators_have_blocks_for_every_thread():
    i, j = Var("i", 512), Var("j", 512)
    p = ProgramBuilder("large")
    x, y = p.input("x", 512, 512), p.output("y", 512, 512)
    op: OpInst = operator("copy", (i, j), Store(at(y, i, j), load(x, i, j)))
    for threads in (1, 2, 16):
        assert replace(op, tile=choose_tile(op, "avx512", threads)).virtual_blocks >= 2 * threads
