"""Operands that dots stream are packed where that pays; results stay the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wolong_fx.codegen.cpp import pack_operands
from wolong_fx.codegen.cpp.packing import LEAST_USES
from wolong_fx.codegen.loops import Carry, Element, LoopInst
from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.schedule_ops import schedule_ops
from wolong_fx.ir.expr import Reduce, Unary
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ir.verify import verify
from wolong_fx.testing.programs import ProgramBuilder, add, at, dot, load, mul, operator


def gated_steps(count: int, layout: str, width: int = 20) -> tuple[list[OpInst], list[Buffer]]:
    """h = tanh(h @ w0) * tanh(h @ w1) + h, unrolled: both products in one operator: one group of dots."""
    p = ProgramBuilder("gated")
    h, i, j = p.input("h", 2, width), Var("i", 2), Var("j", width)
    ws = [p.input(f"w{g}", width, width) for g in range(2)]
    for step in range(count):
        out = p.output("y", 2, width) if step == count - 1 else p.temporary(f"h{step}", 2, width)
        gates = []
        for g, w in enumerate(ws):
            k = Var(f"k{g}", width)
            weight = load(w, k, j) if layout == "kn" else load(w, j, k)
            gates.append(Unary("tanh", dot(k, load(h, i, k), weight)))
        p.stage(operator(f"step{step}", (i, j), Store(at(out, i, j), add(mul(*gates), load(h, i, j)))))
        h = out
    ops = [op for stage in p.body for op in stage.ops]  # type: ignore[union-attr]
    return ops, [b for b in p.buffers if b.kind in (BufferKind.INPUT, BufferKind.OUTPUT)]


def program_of(ops: Sequence[Element], io: list[Buffer]) -> Program:
    program = plan_memory(schedule_ops("packed", ops, io, lambda op: op.domain))
    verify(program, "pack-operands")
    return program


@pytest.mark.parametrize("layout", ["kn", "nk"])
def test_packed_program_agrees_with_reference(check_cpp, isa, layout):
    ops, io = gated_steps(LEAST_USES, layout)
    packed = pack_operands(ops, isa)
    assert len(packed) == len(ops) + 2
    check_cpp(program_of(packed, io), isa)


def test_the_operands_of_a_group_lie_side_by_side_in_one_buffer():
    ops, _ = gated_steps(LEAST_USES, "nk")
    first, second, *_ = pack_operands(ops, "avx512")
    assert first.writes() == second.writes()
    assert first.writes()[0].shape == (1, 20, 2, 32)  # (panel, step, operand, column)
    assert [op.made_from for op in (first, second)] == [("w0",), ("w1",)]


def test_operands_of_few_operators_stay_where_they_are():
    ops, _ = gated_steps(LEAST_USES - 1, "kn")
    assert pack_operands(ops, "avx512") == ops


def test_what_the_program_itself_writes_is_not_packed():
    p = ProgramBuilder("written")
    a, w, i, j, k = p.input("a", 2, 20), p.temporary("w", 20, 20), Var("i", 2), Var("j", 20), Var("k", 20)
    outs = [p.output(f"y{n}", 2, 20) for n in range(LEAST_USES)]
    ops = [operator(y.name, (i, j), Store(at(y, i, j), dot(k, load(a, i, k), load(w, k, j)))) for y in outs]
    assert pack_operands(ops, "avx512") == ops


def product_of_computed(rows: int, columns: int = 20) -> tuple[list[OpInst], list[Buffer]]:
    """y[i, j] = sum over (s, t) of x[s, t, i] * z[s, t, j], x walked backwards; z is computed first."""
    p = ProgramBuilder("computed")
    x, v, z = p.input("x", 5, 3, rows), p.input("v", 5, 3, columns), p.temporary("z", 5, 3, columns)
    s, t, i, j, y = Var("s", 5), Var("t", 3), Var("i", rows), Var("j", columns), p.output("y", rows, columns)
    product = mul(load(x, Index.of(s) * -1 + 4, t, i), load(z, s, t, j))
    ops = [
        operator("z", (s, t, j), Store(at(z, s, t, j), Unary("tanh", load(v, s, t, j)))),
        operator("y", (i, j), Store(at(y, i, j), Reduce("sum", (s, t), product))),
    ]
    return ops, [x, v, y]


def test_what_is_computed_is_packed_behind_its_last_writer(check_cpp, isa):
    ops, io = product_of_computed(rows=12 * LEAST_USES, columns=21)
    packed = pack_operands(ops, isa)
    assert [op.name for op in packed if isinstance(op, OpInst)] == ["z", "pack_z", "y"]
    assert packed[2].reads() != ops[1].reads()
    check_cpp(program_of(packed, io), isa)


@pytest.mark.parametrize("rows", [6, 16, 41])
def test_rows_whose_steps_lie_apart_are_packed_if_many_columns_meet_them(check_cpp, isa, rows):
    ops, io = product_of_computed(rows, columns=64 * LEAST_USES)
    packed = pack_operands(ops, isa)
    copies = [op for op in packed if isinstance(op, OpInst) and op.name == "pack_x"]
    assert len(copies) == 1
    assert copies[0].writes()[0].shape[1:-1] == (5, 3, 1)  # (panel of rows, steps, operand, row)
    check_cpp(program_of(packed, io), isa)


def test_rows_that_lie_along_their_steps_stay_where_they_are():
    op = row_times_matrix(16, "kn")
    packed = pack_operands([op] * LEAST_USES * 8, "avx512")
    assert packed[-1].reads()[0] == op.reads()[0]


def test_a_matrix_that_few_rows_meet_stays_where_it_is():
    ops, _ = product_of_computed(rows=6)
    assert pack_operands(ops, "avx512") == ops


def test_what_the_program_itself_still_changes_is_not_packed():
    (write, use), _ = product_of_computed(rows=12 * LEAST_USES)
    assert pack_operands([write, use, write], "avx512") == [write, use, write]


def test_what_a_loop_carries_is_not_packed():
    p = ProgramBuilder("carried")
    old, new, x = p.temporary("old", 20, 20), p.temporary("new", 20, 20), p.input("x", 20, 20)
    i, j, k = Var("i", 20), Var("j", 20), Var("k", 20)
    start = operator("start", (i, j), Store(at(old, i, j), load(x, i, j)))
    step = operator("step", (i, j), Store(at(new, i, j), dot(k, load(x, i, k), load(old, k, j))))
    loop = LoopInst("loop", Var("t", 12 * LEAST_USES), (step,), (Carry(old, new),))
    start_again, loop_again = pack_operands([start, loop], "avx512")
    assert start_again == start
    assert isinstance(loop_again, LoopInst)
    assert loop_again.body == (step,)


def test_windows_that_overlap_are_not_copied_apart():
    p = ProgramBuilder("windows")
    x, w, y = p.input("x", 39), p.input("w", 200, 20), p.output("y", 200, 20)
    i, j, k = Var("i", 200), Var("j", 20), Var("k", 20)
    op = operator("y", (i, j), Store(at(y, i, j), dot(k, load(w, i, k), load(x, Index.of(k) + j))))
    assert pack_operands([op], "avx512") == [op]


def test_groups_that_differ_in_order_alone_share_their_panels():
    ops, _ = gated_steps(2, "kn")
    turned = [rebuilt(op) for op in ops[1:]]
    packed = pack_operands([ops[0], *turned], "avx512", weights_of(ops), room=1 << 20)
    assert len(packed) == len(ops) + 2


def rebuilt(op: OpInst) -> OpInst:
    """The operator with its two products in the other order."""
    (store,) = op.stores
    product, h = store.value.args
    first, second = product.args
    return OpInst(op.name, op.dims, (Store(store.access, add(mul(second, first), h)),))


def weights_of(ops: Sequence[Element]) -> set[Buffer]:
    return {b for op in ops for b in op.reads() if b.name.startswith("w")}


def row_times_matrix(rows: int, layout: str) -> OpInst:
    p = ProgramBuilder("row")
    x, w, y = p.input("x", rows, 64), p.input("w", 64, 64), p.output("y", rows, 64)
    i, j, k = Var("i", rows), Var("j", 64), Var("k", 64)
    weight = load(w, k, j) if layout == "kn" else load(w, j, k)
    return operator("y", (i, j), Store(at(y, i, j), dot(k, load(x, i, k), weight)))


@pytest.mark.parametrize(
    ("rows", "layout", "packs"), [(1, "nk", False), (1, "kn", True), (4, "nk", True), (4, "kn", True)]
)
def test_a_weight_is_packed_for_one_use_unless_it_is_as_good_in_place(rows, layout, packs):
    op = row_times_matrix(rows, layout)
    packed = pack_operands([op], "avx512", weights_of([op]), room=1 << 20)
    assert (len(packed) == 2) is packs
    assert pack_operands([op], "avx512") == [op]


def test_what_there_is_no_room_for_stays_where_it_is():
    op = row_times_matrix(4, "kn")
    assert pack_operands([op], "avx512", weights_of([op]), room=64 * 64 * 4 - 1) == [op]
    assert pack_operands([op], "avx512", weights_of([op]), room=64 * 64 * 4) != [op]


def test_groups_of_different_sizes_read_panels_of_one_width():
    """Six dots in one operator are groups of four and two, under a micro-kernel of one width."""
    p = ProgramBuilder("six")
    x, i, j = p.input("x", 4, 8), Var("i", 4), Var("j", 64)
    ws = [p.input(f"w{g}", 64, 8) for g in range(6)]
    ks = [Var(f"k{g}", 8) for g in range(6)]
    total = load(x, i, 0)
    for k, w in zip(ks, ws, strict=True):
        total = add(total, dot(k, load(x, i, k), load(w, j, k)))
    op = operator("sum", (i, j), Store(at(p.output("y", 4, 64), i, j), total))
    *copies, packed = pack_operands([op], "avx512", frozenset(ws), room=1 << 20)
    assert {copy.writes()[0].shape[-1] for copy in copies} == {16}
    assert weights_of([packed]).isdisjoint(ws)
