"""A long graph is searched with most of its steps left out: what is found there is found in all of it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from wolong_fx.passes.reroll import find_loops as search
from wolong_fx.passes.reroll import find_stretches, shorten_graph
from wolong_fx.passes.reroll.check_loop import find_flaw
from wolong_fx.passes.reroll.graph_arrays import number_graph
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.testing.graphs import has_same_bits, trace_graph
from wolong_fx.testing.recurrences import (
    Bidirectional,
    CellChain,
    EncoderDecoder,
    LiGRU,
    OddEnds,
    PeepholeLSTM,
    RandomRecurrence,
    RungeKutta,
    Stack,
    TwoStepsBack,
)
from wolong_fx.testing.tracing import dynamo_graph

STEPS = 26
LOOPS = {  # model and input
    "lstm cell": (lambda: CellChain(nn.LSTMCell(3, 4)), (STEPS, 2, 3)),
    "ligru": (lambda: LiGRU(3, 4), (STEPS, 2, 3)),
    "peephole lstm": (lambda: PeepholeLSTM(3, 4), (STEPS, 2, 3)),
    "stack by layer": (lambda: Stack(4, 4, 3, is_by_time=False), (STEPS, 2, 4)),
    "stack by time": (lambda: Stack(3, 4, 3, is_by_time=True), (STEPS, 2, 3)),
    "bidirectional": (lambda: Bidirectional(3, 4, is_interleaved=False), (STEPS, 2, 3)),
    "bidirectional in turn": (lambda: Bidirectional(3, 4, is_interleaved=True), (STEPS, 2, 3)),
    "encoder and decoder": (lambda: EncoderDecoder(3, 4, STEPS - 8), (STEPS, 2, 3)),
    "no input by step": (lambda: RungeKutta(3, 4, STEPS), (2, 3)),
    "two steps back": (lambda: TwoStepsBack(3), (STEPS, 2, 3)),
    "odd first and last step": (lambda: OddEnds(3), (STEPS, 2, 3)),
}


@pytest.fixture(autouse=True)
def few_steps_are_many(monkeypatch):
    monkeypatch.setattr(find_stretches, "FEWEST_STEPS", 14)
    monkeypatch.setattr(find_stretches, "FEWEST_USES", 10)
    monkeypatch.setattr(shorten_graph, "KEPT", 5)


def as_sets(found):
    """Loops and siblings as the sets of nodes of each row."""
    return {frozenset(map(frozenset, loop.rows)) for loop in (*found.loops, *found.siblings)}


@pytest.mark.parametrize("name", LOOPS)
def test_the_short_graph_has_the_loops_of_the_whole(name):
    make, shape = LOOPS[name]
    arrays = number_graph(dynamo_graph(make(), torch.randn(shape))[0])
    short = search._find_in_short_graph(arrays)
    assert short is not None
    assert as_sets(short) == as_sets(search._find_in_graph(arrays))


def test_the_cost_of_the_search_does_not_depend_on_the_number_of_steps():
    def work(steps):
        arrays = number_graph(dynamo_graph(PeepholeLSTM(3, 4), torch.randn(steps, 2, 3))[0])
        shortened = shorten_graph.shorten_graph(arrays)
        assert shortened is not None and arrays.size > shortened.arrays.size
        return search.WORK_PER_NODE * len(shortened.arrays.live) - search.find_loops(arrays).budget.left

    assert work(20) == work(40)


@pytest.mark.parametrize("odd_step", [3, 13, 22])
def test_a_step_that_reads_something_else_is_not_taken_for_the_others(odd_step):
    """In the order of nodes and by their kinds all steps are alike; one reads the state of two steps ago."""

    def forward(x, w):
        states = [x[0], x[0]]
        for t in range(STEPS):
            states.append(torch.tanh(states[-2 if t == odd_step else -1] @ w + x[t]))
        return torch.stack(states)

    x, w = torch.randn(STEPS, 2, 3), torch.randn(3, 3)
    graph, _ = dynamo_graph(forward, x, w)
    arrays = number_graph(graph)
    loops = search.find_loops(arrays).loops
    assert all(find_flaw(arrays, loop, {}) is None for loop in loops)
    assert all(loop.trips < STEPS for loop in loops)
    assert_same_bits(graph, [x, w])


def test_a_loop_that_a_step_left_out_disproves_is_dropped():
    def forward(x, w):
        states = [x[0], x[0]]
        for t in range(STEPS):
            states.append(torch.tanh(states[-2 if t == STEPS // 2 else -1] @ w + x[t]))
        return torch.stack(states)

    arrays = number_graph(dynamo_graph(forward, torch.randn(STEPS, 2, 3), torch.randn(3, 3))[0])
    shortened = shorten_graph.shorten_graph(arrays)
    assert shortened is not None
    claimed = [shortened.lengthen(loop) for loop in search._find_in_graph(shortened.arrays).loops]
    assert any(loop is None or find_flaw(arrays, loop, {}) for loop in claimed)
    assert search._find_in_short_graph(arrays) is None


def test_a_draw_in_every_step_keeps_the_graph_whole():
    def forward(x, w):
        h = x[0]
        for t in range(STEPS):
            h = torch.tanh(torch.nn.functional.dropout(h, 0.5) @ w + x[t])
        return h

    graph, _ = dynamo_graph(forward, torch.randn(STEPS, 2, 3), torch.randn(3, 3))
    assert shorten_graph.shorten_graph(number_graph(graph)) is None


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 2**32))
def test_random_recurrences_keep_every_bit(seed):
    model, x = RandomRecurrence(seed), torch.randn(18, 2, 3)
    with torch.no_grad():
        graph = trace_graph(
            lambda x, w: torch.func.functional_call(model, {"w": w}, (x,)), x, model.w.detach()
        )
    assert_same_bits(graph, [x, model.w])


def assert_same_bits(graph, inputs):
    after, _ = Reroll().apply(graph, lambda *_: None)
    after.graph.lint()
    with torch.no_grad():
        before, now = graph(*inputs), after(*inputs)
    pairs = [(before, now)] if isinstance(before, torch.Tensor) else zip(before, now, strict=True)
    assert all(has_same_bits(old, new) for old, new in pairs)
