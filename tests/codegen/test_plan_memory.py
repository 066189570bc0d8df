"""The memory plan: nothing alive is overwritten, little is wasted."""

import random

import pytest
import torch

from wolong_fx.codegen import build_programs
from wolong_fx.codegen import plan_memory as planning
from wolong_fx.codegen.plan_memory import ALIGNMENT, HEADER, plan_memory
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.errors import InvalidProgram
from wolong_fx.ir.live_ranges import LiveRange, live_ranges
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import SCAN
from wolong_fx.testing.loops import random_loops
from wolong_fx.testing.tracing import trace_core


def plan_of(function, *inputs):
    gm = trace_core(function, *inputs)
    return build_programs(gm, Options.of(disable=("fuse-ops",)), Ledger(), lambda op: op.domain).run


def chain(depth):
    def function(x, w):
        for _ in range(depth):
            x = torch.tanh(x @ w)
        return x

    return function


def test_buffers_alive_together_never_overlap():
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    program = plan_of(lambda x, w: (torch.softmax(x @ w, 1) + x.exp()) @ w, x, w)
    ranges, offsets = live_ranges(program), program.arena.offsets
    buffers = list(ranges)
    for i, a in enumerate(buffers):
        for b in buffers[i + 1 :]:
            if ranges[a].first < ranges[b].last and ranges[b].first < ranges[a].last:
                assert offsets[a] + a.span_bytes <= offsets[b] or offsets[b] + b.span_bytes <= offsets[a]


def test_the_arena_does_not_grow_with_the_length_of_a_chain():
    inputs = (torch.randn(16, 16), torch.randn(16, 16))
    assert plan_of(chain(30), *inputs).arena.size == plan_of(chain(5), *inputs).arena.size


def test_offsets_are_aligned_and_leave_the_header_free():
    program = plan_of(chain(4), torch.randn(3, 5), torch.randn(5, 5))
    assert all(o >= HEADER and o % ALIGNMENT == 0 for o in program.arena.offsets.values())
    assert program.arena.size % ALIGNMENT == 0


def test_a_result_takes_the_place_of_an_operand_that_dies():
    x = torch.randn(64)
    program = plan_of(lambda x: ((x.exp() + 0).clone().sum() + x).tanh().sin(), x)
    assert program.arena.size - HEADER <= 3 * 64 * 4
    torch.testing.assert_close(run_program(program, [x])[0], (x.exp().sum() + x).tanh().sin())


def test_memory_reuse_keeps_results_in_any_block_order():
    inputs = (torch.randn(7, 7), torch.randn(7, 7))
    program = plan_of(chain(6), *inputs)
    for seed in range(3):
        torch.testing.assert_close(run_program(program, list(inputs), seed=seed)[0], chain(6)(*inputs))


def test_a_result_of_several_stores_does_not_take_an_operands_place():
    def joined(x):
        first = torch.cat([x, x], 1)[:, :3] * 0.3
        second = torch.cat([first.tanh(), first], 1)
        return second[:, 1:4] @ x, second[:, :3].amax(0)

    x = torch.randn(3, 3)
    program = build_programs(trace_core(joined, x), Options.of(), Ledger(), lambda op: op.domain).run
    torch.testing.assert_close(run_program(program, [x]), list(joined(x)))


def deep_recurrence(depth):
    """A step is a chain of products; its values are of one trip each."""

    def function(x, u):
        def step(h, x, u):
            h = h + x
            for _ in range(depth):
                h = (h @ u).tanh()
            return h, h.clone()

        return SCAN(step, (x[0] * 0,), (x,), (u,))

    return function


DEEP = torch.randn(3, 8, 8), torch.randn(8, 8)


def test_values_of_a_trip_share_memory_with_others_of_that_trip():
    short, long = (plan_of(deep_recurrence(depth), *DEEP).arena.size for depth in (4, 12))
    assert long == short


def test_shared_memory_of_a_trip_keeps_results_in_any_block_order():
    program, expected = plan_of(deep_recurrence(6), *DEEP), deep_recurrence(6)(*DEEP)
    for seed in range(3):
        torch.testing.assert_close(run_program(program, list(DEEP), seed=seed), list(expected))


@pytest.mark.parametrize("seed", range(2))
def test_random_loops_compute_the_same_in_shared_memory_as_apart(seed, monkeypatch):
    case = random_loops(random.Random(seed))
    shared = run_program(plan_of(case.function, *case.inputs), list(case.inputs), seed=seed)
    whole = LiveRange(0, 1 << 30, is_stretched=True)
    monkeypatch.setattr(planning, "live_ranges", lambda p: dict.fromkeys(live_ranges(p), whole))
    apart = run_program(plan_of(case.function, *case.inputs), list(case.inputs), seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(shared, apart, strict=True))


def test_a_state_that_shares_memory_as_if_it_were_of_one_trip_is_refused(monkeypatch):
    program = plan_of(deep_recurrence(6), *DEEP)

    def shortened(p):
        return {b: LiveRange(r.first, r.first) for b, r in live_ranges(p).items()}

    monkeypatch.setattr(planning, "live_ranges", shortened)
    with pytest.raises(InvalidProgram, match="alive together"):
        verify(plan_memory(program), after="plan-memory")
