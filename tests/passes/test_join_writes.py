"""Steps written into a tensor that the graph made are joined where that is exact; others are left alone."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.ledger import Ledger
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.testing.graphs import has_same_bits

STEPS = 8
SCAN = torch.ops.higher_order.scan


def dynamo_graph(function, *inputs):
    caught = []

    def backend(graph_module, example_inputs):
        caught.append((graph_module, example_inputs))
        return graph_module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=False)(*inputs)
    assert len(caught) == 1
    return caught[0]


def roll(graph_module):
    ledger = Ledger()

    def note(node, action, because):
        ledger.note("reroll", node, action, because)

    after, is_rolled = Reroll().apply(graph_module, note)
    after.graph.lint()
    return after, is_rolled, [d.because for d in ledger.decisions]


def step(h, x):
    return torch.tanh(h + x) * 2 - x * h


def collect(made, place, written=lambda h: h, after=lambda out, x: out):
    """A recurrence over x (T, B, H) that writes its states to parts `place(t)` of `made(x)`."""

    def forward(x):
        out, h = made(x), x[0] * 0
        for t in range(STEPS):
            h = step(h, x[t])
            out[place(t)] = written(h)
        return after(out, x), h

    return forward


def zeros(x):
    return torch.zeros_like(x)


def empty_in_front(x):
    return torch.empty(x.shape[1], STEPS, x.shape[2])


def longer(x):
    return x.new_zeros(STEPS + 2, *x.shape[1:])


def read_back(x):
    out = x.new_zeros(STEPS + 1, *x.shape[1:])
    for t in range(STEPS):
        out[t + 1] = step(out[t], x[t])
    return out


def two_tensors(x):
    h, hs, cs = x[0] * 0, torch.empty_like(x), torch.ones_like(x)
    for t in range(STEPS):
        h = step(h, x[t])
        hs[t], cs[t] = h, torch.sigmoid(h)
    return hs, cs


JOINED = {
    "rows": collect(zeros, lambda t: t),
    "rows of memory not set before": collect(torch.empty_like, lambda t: t),
    "rows from the end": collect(zeros, lambda t: -1 - t),
    "rows of the second dimension": collect(empty_in_front, lambda t: (slice(None), t)),
    "parts of one row": collect(zeros, lambda t: slice(t, t + 1), lambda h: h.unsqueeze(0)),
    "rows between others": collect(longer, lambda t: t + 1),
    "parts between others": collect(longer, lambda t: slice(t + 1, t + 2), lambda h: h[None]),
    "read when all is there": collect(zeros, lambda t: t, after=lambda out, x: (out[3] * 2, out.sum(0), out)),
    "every row is the step after the row before": read_back,
    "two tensors": two_tensors,
}


@pytest.mark.parametrize("name", JOINED)
def test_steps_written_by_parts_are_rolled_and_keep_every_bit(name):
    before, inputs = dynamo_graph(JOINED[name], torch.randn(STEPS, 2, 3))
    after, is_rolled, _ = roll(before)
    assert is_rolled
    with torch.no_grad():
        pairs = list(zip(before(*inputs), after(*inputs), strict=True))
    assert [has_same_bits(*pair) for pair in pairs] == [True] * len(pairs)
    assert [n for n in after.graph.nodes if n.target is SCAN]


def written_twice(x):
    out, h = torch.zeros_like(x), x[0] * 0
    for t in range(STEPS):
        h = step(h, x[t])
        out[t] = h
        out[0] = h
    return out


def read_before_written(x):
    out, h = torch.ones_like(x), x[0] * 0
    for t in range(STEPS):
        h = step(h, x[t]) + out[t]
        out[t] = h
    return out


def history(x):
    out, h = torch.zeros_like(x), x[0] * 0
    for t in range(STEPS):
        h = step(h, x[t])
        out[t] = h
        h = h + out.sum(0)
    return out


def a_view_leaves(x):
    out, h = torch.zeros_like(x), x[0] * 0
    first = None
    for t in range(STEPS):
        h = step(h, x[t])
        out[t] = h
        if t == 0:
            first = out[0].t()
    return out, first


def into_the_input(x):
    h = x[0] * 0
    for t in range(STEPS):
        h = step(h, x[t] * 2)
        x[t] = h
    return x.sum(0)


def changed_after(x):
    out, h = torch.zeros_like(x), x[0] * 0
    for t in range(STEPS):
        h = step(h, x[t])
        out[t] = h
    return out.mul_(2)


LEFT = {
    "memory not set and not written": collect(lambda x: x.new_empty(STEPS + 2, *x.shape[1:]), lambda t: t),
    "a value that is spread": collect(zeros, lambda t: t, lambda h: h[0]),
    "a value that is converted": collect(lambda x: x.new_zeros(x.shape, dtype=torch.float64), lambda t: t),
    "a part in two dimensions": collect(zeros, lambda t: (t, 0), lambda h: h[0]),
    "a row twice": written_twice,
    "read before it is written": read_before_written,
    "read as a whole": history,
    "a row leaves, a view": a_view_leaves,
    "an input": into_the_input,
    "written in place later": changed_after,
}


@pytest.mark.parametrize("name", LEFT)
def test_writes_that_are_no_join_stay_and_the_ledger_says_so(name):
    before, _ = dynamo_graph(LEFT[name], torch.randn(STEPS, 2, 3))
    after, is_rolled, decisions = roll(before)
    assert after is before and not is_rolled
    assert ["writes its operand in place" in because for because in decisions] == [True]
