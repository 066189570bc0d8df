"""Numbers that change with the step travel through a loop as a vector, and compute the same bits."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch

from wolong_fx.ledger import Ledger
from wolong_fx.passes.manager import graph_to_text
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.graphs import has_same_bits
from wolong_fx.testing.recurrences import Scheduled
from wolong_fx.testing.tracing import dynamo_graph

STEPS = 7
GOLDEN = Path(__file__).parent / "golden"


def roll(function, *inputs):
    """The graph, the inputs it is called with, and the graph with loops, None where there are none."""
    graph, given = dynamo_graph(function, *inputs)
    ledger = Ledger()
    after, is_rolled = Reroll().apply(
        graph, lambda node, action, because: ledger.note("r", node, action, because)
    )
    after.graph.lint()
    return graph, given, after if is_rolled else None


def assert_same_bits(before, after, given):
    with torch.no_grad():
        pairs = list(zip(before(*given), after(*given), strict=True))
    assert all(has_same_bits(*pair) for pair in pairs)


def vectors(graph):
    return [node.args[0] for node in graph.graph.nodes if node.target is torch.tensor]


EXACT = {
    "x + n": (operator.add, lambda t: 0.1 * t),
    "x - n": (operator.sub, lambda t: t / 3),
    "n - x": (lambda x, n: n - x, lambda t: 1 / (t + 1)),
    "x * n": (operator.mul, lambda t: 0.7**t),
    "x / n": (operator.truediv, lambda t: 1 - 0.9 ** (t + 1)),
    "an integer": (operator.mul, lambda t: t - 2),
    "zeros of both signs": (operator.mul, lambda t: (-1.0) ** t * 0.0 if t < 4 else t * 1.5),
    "infinite, and no number": (operator.add, lambda t: [0.5, float("inf"), -1.0, float("nan")][t % 4]),
    "more digits than the tensor has": (operator.mul, lambda t: 1.00000005960464477 + t * 1e-9),
    "a method": (lambda x, n: x.sub(n), lambda t: t * 0.3),
    "torch's function": (torch.true_divide, lambda t: t + 0.3),
    "a comparison": (lambda x, n: torch.where(x > n, x, -x), lambda t: t / 10),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_a_number_of_the_step_is_an_input_of_the_loop(name, dtype):
    combine, number = EXACT[name]

    def forward(x):
        h = x[0] * 0.5
        for t in range(STEPS):
            h = torch.tanh(combine(x[t], number(t)) + torch.sin(h) - torch.cos(x[t]))
        return h

    before, given, after = roll(forward, torch.randn(STEPS, 2, 3, dtype=dtype))
    assert after is not None
    (vector,) = vectors(after)
    assert str(vector) == str([number(t) for t in range(STEPS)])
    assert_same_bits(before, after, given)


def test_a_number_next_to_a_tensor_without_dimensions_does_not_widen_it():
    def forward(x):
        h = x.sum()
        for t in range(STEPS):
            h = torch.tanh(h * (t / 3.0) + torch.sin(h) - torch.cos(h * h))
        return h

    before, given, after = roll(forward, torch.randn(4))
    assert after is not None
    assert_same_bits(before, after, given)


def test_positions_are_compared_and_counted_as_integers():
    def forward(x, lengths):
        h, n = x[0] * 0, lengths * 0
        for t in range(STEPS):
            n = n * 3 + lengths + t
            h = torch.where((lengths > t).unsqueeze(1), torch.tanh(h + x[t]), h)
        return h, n

    before, given, after = roll(forward, torch.randn(STEPS, 3, 2), torch.tensor([1, 7, 3]))
    assert after is not None
    assert_same_bits(before, after, given)


INEXACT = {
    "a reciprocal": (lambda x, n: n / x, torch.float32),
    "a power": (lambda x, n: x**n, torch.float32),
    "a narrow type": (lambda x, n: x * n, torch.bfloat16),
    "an addend that is scaled": (lambda x, n: torch.add(x, n, alpha=2), torch.float32),
    "a type that the number changes": (lambda x, n: x * n, torch.int32),
}


@pytest.mark.parametrize("name", INEXACT)
def test_where_a_tensor_would_compute_otherwise_the_steps_stay(name):
    combine, dtype = INEXACT[name]

    def forward(x):
        h = combine(x[0], 0.3) * 0.5
        for t in range(STEPS):
            h = torch.tanh(combine(x[t], t + 0.3) + torch.sin(h) - torch.cos(x[t]))
        return h

    before, given, after = roll(forward, (torch.randn(STEPS, 2, 3) * 9).to(dtype))
    if after is not None:
        assert not vectors(after)
        assert_same_bits(before, after, given)


def test_lengths_and_schedules_are_one_loop():
    model = Scheduled(3)
    before, given, after = roll(model, torch.randn(9, 2, 3))
    assert after is not None
    assert sorted(map(len, vectors(after))) == [9, 9, 9]
    assert sum(node.target is torch.ops.higher_order.scan for node in after.graph.nodes) == 1
    assert_same_bits(before, after, given)


def test_before_and_after(request):
    def forward(x):
        h = x[0] * 0
        for t in range(5):
            h = torch.tanh(x[t] * (t / 5) + torch.sigmoid(h)) - h
        return h

    before, _, after = roll(forward, torch.randn(5, 2, 3))
    assert after is not None
    text = f"before\n{graph_to_text(before)}\nafter\n{graph_to_text(after)}"
    assert_golden(text, GOLDEN / "loops" / "step_numbers.txt", request.config.getoption("--accept"))
