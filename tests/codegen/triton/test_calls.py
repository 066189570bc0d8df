"""Which operator of a stage a virtual block belongs to."""

from __future__ import annotations

import torch

from wolong_fx.codegen.triton import emit_program
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.testing.grid_simulator import simulate
from wolong_fx.testing.programs import ProgramBuilder, add, at, f32, inputs_of, load, operator

MANY = 300


def many_operators() -> Program:
    """One stage in which operator n adds n to its own row of an input."""
    p = ProgramBuilder("many")
    x, y = p.input("x", MANY, 3), p.output("y", MANY, 3)
    ops = []
    for n in range(MANY):
        j = Var("j", 3)
        ops.append(operator(f"op{n}", (j,), Store(at(y, n, j), add(load(x, n, j), f32(float(n)))), tile=(2,)))
    p.stage(*ops)
    return p.build()


def test_the_operators_of_a_stage_are_told_apart_however_many_they_are():
    program = many_operators()
    (x,) = inputs_of(program)
    (y,) = simulate(program, [x], blocks=7).outputs
    torch.testing.assert_close(y, x + torch.arange(MANY)[:, None])


def test_hundreds_of_operators_are_told_apart_by_few_questions():
    """Triton's compiler gives up where statements stand some hundred deep."""
    lines = emit_program(many_operators()).text.splitlines()
    assert max(len(line) - len(line.lstrip()) for line in lines) // 4 <= 2 + MANY.bit_length()
