"""Emitted text of a few short programs, word for word: a refactoring shows that no kernel changed.

`pytest --accept` writes the files anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wolong_fx.codegen.triton import choose_tile, emit_program
from wolong_fx.ir.expr import Reduce
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import TYPICAL, ProgramBuilder, at, dot, load, operator

GOLDEN = Path(__file__).parent / "golden"


def row_sums() -> Program:
    p = ProgramBuilder("row_sums")
    x, y, i, k = p.input("x", 40, 9000), p.output("y", 40), Var("i", 40), Var("k", 9000)
    p.stage(operator("row_sums", (i,), Store(at(y, i), Reduce("sum", (k,), load(x, i, k)))))
    return p.build()


def matmul() -> Program:
    p = ProgramBuilder("matmul")
    a, b, c = p.input("a", 20, 40), p.input("b", 40, 64), p.output("c", 20, 64)
    i, j, k = Var("i", 20), Var("j", 64), Var("k", 40)
    p.stage(operator("matmul", (i, j), Store(at(c, i, j), dot(k, load(a, i, k), load(b, k, j)))))
    return p.build()


CASES = {"row_sums": row_sums, "matmul": matmul} | {
    name: TYPICAL[name] for name in ("recurrence", "embedding", "concat")
}


def with_chosen_tiles(program: Program) -> Program:
    def retiled(op: OpInst) -> OpInst:
        return OpInst(op.name, op.dims, op.stores, choose_tile(op), op.made_from)

    return map_ops(program, retiled)


@pytest.mark.parametrize("name", CASES)
def test_emitted_text_is_the_golden_one(name, request):
    text = emit_program(with_chosen_tiles(CASES[name]())).text
    assert_golden(text, GOLDEN / f"{name}.py.txt", request.config.getoption("--accept"))


def test_emitting_twice_gives_the_same_text():
    first, second = (emit_program(TYPICAL["recurrence"]()).text for _ in range(2))
    assert first == second
