"""Loops whose trips touch more than a core's cache holds walk their blocks there and back."""

from __future__ import annotations

import pytest

from wolong_fx.codegen.cpp import emit_program
from wolong_fx.codegen.cpp.traffic import ROOM, outgrows, touched_bytes
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Loop, Program, Stage, Store
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import ProgramBuilder, at, dot, load, operator

WIDTH = 128
STREAMED = 4 * WIDTH * WIDTH
"""Bytes of the weights that every trip reads."""


def recurrence(steps: int) -> Program:
    """h = h @ w, again and again."""
    p, j, k, t = ProgramBuilder("again"), Var("j", WIDTH), Var("k", WIDTH), Var("t", steps)
    w, h, y = p.input("w", WIDTH, WIDTH), p.temporary("h", 2, WIDTH), p.output("y", WIDTH)
    start = p.input("start", WIDTH)
    p.stage(operator("start", (j,), Store(at(h, 0, j), load(start, j))))
    product = dot(k, load(h, Index.of(t) % 2, k), load(w, k, j))
    p.body.append(
        Loop(t, (Stage((operator("step", (j,), Store(at(h, (Index.of(t) + 1) % 2, j), product)),)),))
    )
    p.stage(operator("end", (j,), Store(at(y, j), load(h, steps % 2, j))))
    return with_chosen_tiles(p.build(), "avx512", 2)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_loop_outgrows_a_cache_that_its_threads_shares_do_not_fit(threads):
    (loop,) = (item for item in recurrence(9).body if isinstance(item, Loop))
    touched = touched_bytes(op for stage in loop.body if isinstance(stage, Stage) for op in stage.ops)
    assert STREAMED < touched < 1.1 * STREAMED
    assert outgrows(loop, threads, 0.99 * touched / ROOM / threads)
    assert not outgrows(loop, threads, 1.01 * touched / ROOM / threads)


def text_of(steps: int, core_cache_bytes: float) -> str:
    return emit_program(recurrence(steps), "avx512", 2, core_cache_bytes).text


def test_every_other_trip_runs_backwards_where_a_cache_does_not_hold_one():
    assert "if (w->loop[0] % 2) run_stages_backwards(w, 1, 2);" in text_of(9, STREAMED / 4)


def test_where_the_caches_of_a_team_hold_a_trip_one_thread_alone_runs_every_other_backwards():
    text = text_of(9, STREAMED)
    assert "if (w->team == 1 && w->loop[0] % 2) run_stages_backwards(w, 1, 2);" in text


def test_a_loop_that_fits_or_runs_once_is_never_walked_backwards():
    assert "backwards" not in text_of(9, 2.0 * STREAMED)
    assert "backwards" not in text_of(1, STREAMED / 4)
    assert "backwards" not in emit_program(recurrence(9), "avx512", 2).text
