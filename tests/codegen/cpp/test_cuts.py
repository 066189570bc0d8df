"""Which thread runs which blocks: cuts of stages, and what barriers may rely on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen.cpp import BlockOwners, emit_program
from wolong_fx.codegen.cpp.cuts import SMALL_STAGE, Piece, cut_stage
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.tiles import Planner, block_order
from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.reference import run_program
from wolong_fx.ir.expr import Unary
from wolong_fx.ir.happens_before import find_races, remove_redundant_barriers
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Loop, Program, Stage, Store
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import (
    ProgramBuilder,
    add,
    at,
    dot,
    f32,
    inputs_of,
    load,
    operator,
    random_program,
)

pieces = st.lists(
    st.builds(Piece, blocks=st.integers(0, 200), panel=st.integers(1, 9), cycles=st.floats(0, 1e7)),
    max_size=6,
)


@given(pieces, st.integers(1, 9))
def test_every_block_of_an_operator_runs_on_exactly_one_thread(stage, threads):
    by_thread = cut_stage(stage, threads)
    assert len(by_thread) == threads
    for op, piece in enumerate(stage):  # ranges that follow each other from thread to thread
        parts = [part for parts in by_thread for part in parts if part.op == op]
        assert [p.first for p in parts] == [0, *(p.last for p in parts)][: len(parts)]
        assert all(p.first < p.last for p in parts)
        assert sum(p.last - p.first for p in parts) == piece.blocks


@given(pieces, st.integers(1, 9))
def test_a_thread_runs_operators_in_the_order_of_the_stage(stage, threads):
    for parts in cut_stage(stage, threads):
        order = [part.op for part in parts]
        assert order == sorted(set(order))


@given(st.integers(2, 8), st.integers(8, 400))
def test_equal_blocks_are_shared_evenly(threads, blocks):
    counts = [sum(p.last - p.first for p in parts) for parts in cut_stage([Piece(blocks, 1, 1e6)], threads)]
    assert max(counts) - min(counts) <= 1


def ranges(stage: list[Piece], threads: int) -> list[list[tuple[int, int]]]:
    return [[(p.first, p.last) for p in parts] for parts in cut_stage(stage, threads)]


def test_panels_that_can_be_dealt_out_equally_are_whatever_else_is_in_the_stage():
    first, second = ranges([Piece(8, 1, 19000.0), Piece(8, 1, 6000.0), Piece(3, 1, 3000.0)], 2)
    assert first[:2] == [(0, 4), (0, 4)]
    assert second[:2] == [(4, 8), (4, 8)]


def test_operators_stay_whole_where_that_is_fair():
    assert ranges([Piece(4, 1, 1000.0)] * 6, 2) == [[(0, 4)] * 3] * 2
    assert ranges([Piece(8, 1, 50000.0), Piece(8, 1, 52000.0)], 2) == [[(0, 8)], [(0, 8)]]
    assert ranges([Piece(8, 1, 50000.0), Piece(8, 1, 70000.0)], 2) == [[(0, 4)] * 2, [(4, 8)] * 2]


def test_two_recurrences_side_by_side_need_no_barrier_in_their_loop():
    assert [stage.barrier for stage in thinned(two_recurrences()).stages()] == [True, False, True, False]


def two_recurrences() -> Program:
    """h = tanh(h @ w) of two states that never meet, in one loop, as the directions of an nn.LSTM are."""
    p, width, steps = ProgramBuilder("two"), 128, 5
    j, t = Var("j", width), Var("t", steps)
    now, after = Index.of(t) % 2, (Index.of(t) + 1) % 2
    start, step, end = [], [], []
    for n in range(2):
        x, w, k = p.input(f"x{n}", width), p.input(f"w{n}", width, width), Var(f"k{n}", width)
        h, y = p.temporary(f"h{n}", 2, width), p.output(f"y{n}", width)
        new = Unary("tanh", dot(k, load(h, now, k), load(w, k, j)))
        start.append(operator(f"start{n}", (j,), Store(at(h, 0, j), load(x, j))))
        step.append(operator(f"step{n}", (j,), Store(at(h, after, j), new)))
        end.append(operator(f"end{n}", (j,), Store(at(y, j), load(h, steps % 2, j))))
    p.stage(*start)
    p.body += [Loop(t, (Stage(tuple(step)),)), Stage(())]  # as a schedule has it: the loop, then a barrier
    p.stage(*end)
    return planned(p.build())


def test_a_stage_of_little_work_stays_on_one_thread():
    assert [len(parts) for parts in cut_stage([Piece(10, 1, SMALL_STAGE / 2)], 4)] == [1, 0, 0, 0]


@given(st.floats(0, 1e9), st.integers(1, 9))
def test_a_block_alone_in_its_stage_is_the_first_threads(cycles, threads):
    first, *others = ranges([Piece(1, 1, cycles)], threads)
    assert first == [(0, 1)] and not any(others)


def test_panels_are_kept_together_where_there_are_enough():
    assert ranges([Piece(40, 10, 1e6)], 2) == [[(0, 20)], [(20, 40)]]


# ---- owners, and the barriers that go because of them


def planned(program: Program, threads: int = 2) -> Program:
    return plan_memory(replace(with_chosen_tiles(program, "avx512", threads), arena=None))


def test_blocks_are_numbered_as_the_tile_function_numbers_them():
    """The text's own arithmetic, run in Python: columns are cut for threads, rows under them are not."""
    program = planned(wide_product())
    (op,) = program.ops()
    assert op.grid[0] > 1 and op.grid[1] > 1
    assert block_order(Planner(op, MACHINES["avx512"])) == (1, 0)
    lines = dict(re.findall(r"const i64 (b\d) = (b[^;]*);", emit_program(program, "avx512", 2).text))
    runs = re.search(r"RUNS\[\] = \{\{0, 0, 0, (\d+)\}", emit_program(program, "avx512", 2).text)
    assert runs is not None
    owner, first_of_second = BlockOwners(program, "avx512", 2), int(runs[1])
    for number in range(op.virtual_blocks):
        where = [eval(lines[f"b{i}"].replace("/", "//"), {"b": number}) for i in range(2)]
        row_major = int(np.ravel_multi_index(where, op.grid))
        assert owner(op, row_major) == int(number >= first_of_second)


def wide_product() -> Program:
    """c = a @ b, its rows in several blocks under each panel of columns."""
    p, i, j, k = ProgramBuilder("wide"), Var("i", 96), Var("j", 512), Var("k", 64)
    a, b, c = p.input("a", 96, 64), p.input("b", 64, 512), p.output("c", 96, 512)
    p.stage(operator("product", (i, j), Store(at(c, i, j), dot(k, load(a, i, k), load(b, k, j)))))
    return p.build()


def chains(steps: int, alike: bool) -> Program:
    """y = relu-like chains over rows; where not `alike`, each step reads the rows backwards."""
    p, n = ProgramBuilder("chains"), 64
    i, j = Var("i", n), Var("j", 512)
    source = p.input("x", n, 512)
    for step in range(steps):
        target = p.output("y", n, 512) if step == steps - 1 else p.temporary(f"t{step}", n, 512)
        value = load(source, i, j) if alike else load(source, -1 * Index.of(i) + (n - 1), j)
        p.stage(operator(f"step{step}", (i, j), Store(at(target, i, j), add(value, f32(1.0)))))
        source = target
    return planned(p.build())


def thinned(program: Program, threads: int = 2) -> Program:
    return remove_redundant_barriers(program, BlockOwners(program, "avx512", threads))


def test_stages_whose_blocks_depend_on_blocks_of_the_same_thread_need_no_barrier():
    assert not any(stage.barrier for stage in thinned(chains(4, alike=True)).stages())


def test_stages_that_read_what_another_thread_wrote_keep_their_barriers():
    kept = [stage.barrier for stage in thinned(chains(4, alike=False)).stages()]
    assert kept == [True, True, True, False]


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_programs_thinned_by_owners_give_the_same_bits_however_threads_run_beside_each_other(seed, threads):
    program = planned(random_program(seed), threads)
    owner = BlockOwners(program, "avx512", threads)
    fewer = remove_redundant_barriers(program, owner)
    assert not find_races(fewer, owner)
    inputs = inputs_of(program)
    (expected,) = run_program(program, inputs, seed=0)
    for order in range(3):
        found = run_program(fewer, inputs, threads=threads, seed=order, owner=owner)
        assert torch.equal(found[0], expected)
        # A team of fewer threads takes over whole owners.
        joined = lambda op, block: owner(op, block) // 2  # noqa: E731
        found = run_program(fewer, inputs, threads=threads, seed=order, owner=joined)
        assert torch.equal(found[0], expected)


@given(st.integers(0, 2**32), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_the_tables_say_what_owners_said_before_barriers_went(seed, threads):
    program = planned(random_program(seed), threads)
    owner = BlockOwners(program, "avx512", threads)
    later = BlockOwners(remove_redundant_barriers(program, owner), "avx512", threads)
    for op in program.ops():
        blocks = range(op.virtual_blocks)
        assert [owner(op, b) for b in blocks] == [later(op, b) for b in blocks]
