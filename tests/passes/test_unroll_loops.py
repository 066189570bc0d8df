"""A loop unrolled computes the same bits; which loops are unrolled."""

from __future__ import annotations

import random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import SCAN, is_scan, scans_in
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.unroll_loops import UnrollLoops
from wolong_fx.testing.graphs import GraphBuilder, aten, has_same_bits, trace_graph
from wolong_fx.testing.random_loops import loop_graph, random_loop


def all_is_supported(node):
    return None


def apply(a_pass, graph_module):
    return PassManager([a_pass], Options(), Ledger())(graph_module).graph_module


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_an_unrolled_loop_computes_the_same_bits(seed, trips):
    graph_module, inputs = random_loop(random.Random(seed), trips=trips, dtype=torch.float32)
    before = graph_module(*inputs)
    after = apply(UnrollLoops(), graph_module)
    assert not any(map(is_scan, after.graph.nodes))
    assert [has_same_bits(*pair) for pair in zip(before, after(*inputs), strict=True)].count(False) == 0


def test_a_loop_in_a_loop_is_unrolled_with_it():
    def inner(state, element, w):
        state = torch.tanh(state @ w + element)
        return [state, state.clone()]

    def outer(carry, row, w):
        last, seen = SCAN(inner, (carry,), (row,), (w,))
        return [last, seen.sum(0)]

    def model(x, w):
        return SCAN(outer, (x[0, 0] * 0,), (x,), (w,))

    x, w = torch.randn(3, 4, 2, 5), torch.randn(5, 5)
    graph_module = trace_graph(model, x, w)
    before = graph_module(x, w)
    after = apply(UnrollLoops(), graph_module)
    assert not any(map(is_scan, after.graph.nodes))
    assert all(map(has_same_bits, before, after(x, w)))


def test_a_loop_that_codegen_lowers_stays_unless_it_has_hardly_a_step():
    for trips, stays in ((1, False), (2, True)):
        graph_module, _ = random_loop(random.Random(0), trips=trips)
        assert bool(list(scans_in(apply(UnrollLoops(all_is_supported), graph_module)))) is stays


def test_a_loop_that_would_become_too_many_operators_stays():
    graph_module, _ = random_loop(random.Random(0), trips=3)
    assert list(scans_in(apply(UnrollLoops(most_operators=20), graph_module)))


def test_a_loop_that_draws_stays():
    body = GraphBuilder(random.Random(0))
    x = body.add_input(torch.zeros(3))
    noise = body.call(aten.bernoulli.p, x, 0.5)
    body.graph.output((noise,))
    graph_module, _ = loop_graph(body, [torch.zeros(4, 3)], carries=0, slices=1)
    assert list(scans_in(apply(UnrollLoops(), graph_module)))
