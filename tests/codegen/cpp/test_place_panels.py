"""What is computed for dots to stream is stored in their panels, if everybody's vectors are vectors there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen.cpp import pack_operands
from wolong_fx.codegen.cpp.packing import LEAST_USES
from wolong_fx.codegen.loops import Carry, Element, LoopInst
from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.schedule_ops import schedule_ops
from wolong_fx.ir.expr import Reduce, Unary
from wolong_fx.ir.index import Index, IndexLike, Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.ir.types import Buffer
from wolong_fx.ir.verify import verify
from wolong_fx.testing.programs import ProgramBuilder, add, at, inputs_of, load, mul, operator

ROWS = 12 * LEAST_USES


def product_of_computed(columns: int, sums_along_columns: bool = False) -> tuple[list[OpInst], list[Buffer]]:
    """z = tanh(v), s[t, j] = z summed over i or, if asked for, s[t, i] = z summed over columns; y = x^T z."""
    p = ProgramBuilder("computed")
    x, v, z = p.input("x", 6, 4, ROWS), p.input("v", 6, 4, columns), p.temporary("z", 6, 4, columns)
    t, i, j, r = Var("t", 6), Var("i", 4), Var("j", columns), Var("r", ROWS)
    first, other = (i, j) if sums_along_columns else (j, i)
    y, s = p.output("y", ROWS, columns), p.output("s", 6, first.extent)
    total = Reduce("sum", (t, i), mul(load(x, t, i, r), load(z, t, i, j)))
    ops = [
        operator("z", (t, i, j), Store(at(z, t, i, j), Unary("tanh", load(v, t, i, j)))),
        operator("s", (t, first), Store(at(s, t, first), Reduce("sum", (other,), load(z, t, i, j)))),
        operator("y", (r, j), Store(at(y, r, j), total)),
    ]
    return ops, [x, v, y, s]


def gradients_of_a_loop(steps: int, batch: int, columns: int) -> tuple[list[Element], list[Buffer]]:
    """h' = tanh(h + v[t]); two stacks of it, z0 = h' and z1 = h' * h; y0 = x^T z0 and y1 = x^T z1."""
    p = ProgramBuilder("recurrent")
    x, v = p.input("x", steps, batch, ROWS), p.input("v", steps, batch, columns)
    old, new = p.temporary("old", batch, columns), p.temporary("new", batch, columns)
    zs = [p.temporary(f"z{n}", steps, batch, columns) for n in range(2)]
    ys = [p.output(f"y{n}", ROWS, columns) for n in range(2)]
    trip, i, j, r = Var("t0", steps), Var("i", batch), Var("j", columns), Var("r", ROWS)
    h = load(old, i, j)
    following = Unary("tanh", add(h, load(v, trip, i, j)))
    values = (following, mul(following, h))
    stores = [Store(at(z, trip, i, j), value) for z, value in zip(zs, values, strict=True)]
    step = operator("step", (i, j), Store(at(new, i, j), following), *stores)
    start = operator("start", (i, j), Store(at(old, i, j), load(v, 0, i, j)))
    loop = LoopInst("loop", trip, (step,), (Carry(old, new),), tuple(zs))
    sums = []
    for n, z in enumerate(zs):
        s, k = Var(f"s{n}", steps), Var(f"k{n}", batch)
        backwards: IndexLike = Index.of(s) * -1 + (steps - 1)
        sums.append(Reduce("sum", (s, k), mul(load(x, backwards, k, r), load(z, s, k, j))))
    gemm = operator("y", (r, j), *(Store(at(y, r, j), total) for y, total in zip(ys, sums, strict=True)))
    return [start, loop, gemm], [x, v, *ys]


def program_of(ops: list[Element], io: list[Buffer]) -> Program:
    program = plan_memory(schedule_ops("placed", ops, io, lambda op: op.domain))
    verify(program, "pack-operands")
    return program


def copies_of(ops: list[Element], name: str) -> list[Element]:
    return [op for op in ops if isinstance(op, OpInst) and op.name == f"pack_{name}"]


@pytest.mark.parametrize("columns", [64, 128, 320])
def test_what_is_computed_for_dots_is_stored_in_their_panels(check_cpp, isa, columns):
    ops, io = product_of_computed(columns)
    packed = pack_operands(ops, isa)
    assert not copies_of(packed, "z")
    assert all("z" not in {b.name for b in op.writes()} for op in packed)
    check_cpp(program_of(packed, io), isa)


def test_a_last_panel_that_is_not_full_is_copied(check_cpp, isa):
    ops, io = product_of_computed(columns=70)
    packed = pack_operands(ops, isa)
    assert len(copies_of(packed, "z")) == 1
    check_cpp(program_of(packed, io), isa)


def test_what_somebody_reads_across_panels_is_copied(check_cpp, isa):
    ops, io = product_of_computed(128, sums_along_columns=True)
    packed = pack_operands(ops, isa)
    assert len(copies_of(packed, "z")) == 1
    check_cpp(program_of(packed, io), isa)


def test_the_stacks_of_a_loop_are_panels(check_cpp, isa):
    ops, io = gradients_of_a_loop(steps=5, batch=3, columns=64)
    packed = pack_operands(ops, isa)
    assert not copies_of(packed, "z0") and not copies_of(packed, "z1")
    (loop,) = (e for e in packed if isinstance(e, LoopInst))
    assert len(loop.stacks) == 1  # both in one buffer
    assert loop.stacks[0] in loop.writes()
    check_cpp(program_of(packed, io), isa)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([16, 32, 48, 50, 64, 80]))
def test_panels_change_no_value(steps, batch, columns):
    ops, io = gradients_of_a_loop(steps, batch, columns)
    plain, placed = program_of(ops, io), program_of(pack_operands(ops, "avx512"), io)
    inputs = inputs_of(plain)
    for wanted, found in zip(
        run_program(plain, inputs, seed=0), run_program(placed, inputs, seed=1), strict=True
    ):
        assert wanted.equal(found)
