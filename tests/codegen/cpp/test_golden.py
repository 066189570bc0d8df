"""Emitted text of a few short programs, word for word: a refactoring shows that no kernel changed.

`pytest --accept` writes the files anew. They hold what depends on the program; the prelude is left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wolong_fx.codegen.cpp import emit_program
from wolong_fx.ir.expr import Reduce
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import TYPICAL, ProgramBuilder, at, dot, load, operator

GOLDEN = Path(__file__).parent / "golden"


def row_sums() -> Program:
    p = ProgramBuilder("row_sums")
    x, y, i, k = p.input("x", 40, 50), p.output("y", 40), Var("i", 40), Var("k", 50)
    p.stage(operator("row_sums", (i,), Store(at(y, i), Reduce("sum", (k,), load(x, i, k)))))
    return p.build()


def matmul() -> Program:
    p = ProgramBuilder("matmul")
    a, b, c = p.input("a", 4, 32), p.input("b", 32, 64), p.output("c", 4, 64)
    i, j, k = Var("i", 4), Var("j", 64), Var("k", 32)
    p.stage(operator("matmul", (i, j), Store(at(c, i, j), dot(k, load(a, i, k), load(b, k, j)))))
    return p.build()


CASES = {"row_sums": row_sums, "matmul": matmul} | {
    name: TYPICAL[name] for name in ("recurrence", "embedding", "concat")
}


def shown(program: Program, isa: str) -> str:
    text = emit_program(with_chosen_tiles(program, isa, 2), isa, 2).text
    functions = text[text.index("// ---- tile functions") :]
    tables, body = functions.index("struct WolongHost"), functions.index("static void run_program")
    return functions[:tables] + functions[body : functions.index("struct Launch")]


@pytest.mark.parametrize("target", ["avx512", "avx2"])
@pytest.mark.parametrize("name", CASES)
def test_emitted_text_is_the_golden_one(name, target, request):
    file, text = GOLDEN / f"{name}_{target}.cpp", shown(CASES[name](), target)
    if request.config.getoption("--accept"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "if the change is meant: pytest --accept, and look at the difference"


def test_emitting_twice_gives_the_same_text():
    first, second = (shown(TYPICAL["recurrence"](), "avx512") for _ in range(2))
    assert first == second
