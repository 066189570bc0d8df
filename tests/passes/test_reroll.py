"""Rolled graphs compute what the unrolled ones do, bit by bit; what is no loop stays, with a reason."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from wolong_fx.ledger import Ledger
from wolong_fx.passes.reroll import find_loops as search
from wolong_fx.passes.reroll.check_loop import find_flaw
from wolong_fx.passes.reroll.find_loops import find_loops
from wolong_fx.passes.reroll.graph_arrays import _layout, number_graph, value_of
from wolong_fx.passes.reroll.loop import Carried, Invariant, PerStep, SameStep
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.passes.verify import Promise, verify
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
    Towers,
    TwoStepsBack,
)
from wolong_fx.testing.tracing import dynamo_graph

scan = torch.ops.higher_order.scan


@cache
def graph_of(name):
    """Of one of LOOPS."""
    make, shape, _ = LOOPS[name]
    return dynamo_graph(make(), X(shape))


def roll(graph_module, **options):
    """The rolled graph, whether anything was rolled, and the ledger."""
    ledger = Ledger()
    after, is_rolled = Reroll(**options).apply(
        graph_module, lambda node, action, because: ledger.note("reroll", node, action, because)
    )
    after.graph.lint()
    return after, is_rolled, ledger


def scans(graph_module):
    return [node for node in graph_module.graph.nodes if node.target is scan]


def shape_of_loops(graph_module):
    """(steps, carried tensors, operators of the body) of each scan."""
    found = []
    for node in scans(graph_module):
        body = getattr(graph_module, node.args[0].target)
        operators = [n for n in body.graph.nodes if n.op.startswith("call")]
        value = next(iter(node.args[2])).meta
        steps = (value["val"] if "val" in value else value["example_value"]).shape[0]
        found.append((steps, len(node.args[1]), len(operators)))
    return found


def assert_same_bits(before, after, inputs):
    with torch.no_grad():
        torch.manual_seed(0)
        old, old_state = before(*inputs), torch.get_rng_state()
        torch.manual_seed(0)
        new = after(*inputs)
    assert [i for i, pair in enumerate(zip(old, new, strict=True)) if not has_same_bits(*pair)] == []
    assert torch.equal(old_state, torch.get_rng_state())
    assert shared_memory(old, inputs) == shared_memory(new, inputs)


def shared_memory(outputs, inputs):
    tensors = [t for t in (*inputs, *outputs) if isinstance(t, torch.Tensor)]
    first = {}
    return [first.setdefault(t.untyped_storage().data_ptr(), i) for i, t in enumerate(tensors) if t.numel()]


X = torch.randn
LOOPS = {  # model, input, (steps, carried tensors, operators of the body) of each loop; clones count
    "lstm cell": (lambda: CellChain(nn.LSTMCell(3, 4)), (7, 2, 3), [(7, 2, 4)]),
    "gru cell, batch first": (lambda: CellChain(nn.GRUCell(3, 4), dim=1), (2, 7, 3), [(7, 1, 2)]),
    "ligru": (lambda: LiGRU(3, 4), (6, 2, 3), [(6, 1, 12)]),
    "peephole lstm": (lambda: PeepholeLSTM(3, 4), (6, 2, 3), [(6, 2, 26)]),
    "stack by layer": (lambda: Stack(4, 4, 3, is_by_time=False), (6, 2, 4), [(6, 3, 4)]),
    "stack by time": (lambda: Stack(3, 4, 3, is_by_time=True), (6, 2, 3), [(6, 3, 4)]),
    "bidirectional": (lambda: Bidirectional(3, 4, is_interleaved=False), (8, 2, 3), [(8, 1, 2)] * 2),
    "bidirectional in turn": (lambda: Bidirectional(3, 4, is_interleaved=True), (8, 2, 3), [(8, 2, 4)]),
    "encoder and decoder": (lambda: EncoderDecoder(3, 4, 6), (8, 2, 3), [(8, 1, 2), (6, 2, 13)]),
    "no input by step": (lambda: RungeKutta(3, 4, 5), (2, 3), [(5, 1, 25)]),
    "two steps back": (lambda: TwoStepsBack(3), (8, 2, 3), [(8, 2, 7)]),
    "odd first and last step": (lambda: OddEnds(3), (9, 2, 3), [(7, 1, 5)]),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_recurrence_becomes_its_loops_and_keeps_every_bit(name):
    before, inputs = graph_of(name)
    after, is_rolled, ledger = roll(before)
    assert is_rolled
    assert shape_of_loops(after) == LOOPS[name][2]
    assert ledger.count("replaced") == len(LOOPS[name][2])
    assert_same_bits(before, after, inputs)


@pytest.mark.parametrize("make", [lambda: PeepholeLSTM(3, 4), lambda: Stack(3, 4, 3, is_by_time=False)])
def test_the_size_of_a_rolled_graph_does_not_depend_on_the_number_of_steps(make):
    graphs = [roll(dynamo_graph(make(), X(steps, 2, 3))[0])[0] for steps in (8, 16)]
    assert len({len(graph.graph.nodes) for graph in graphs}) == 1


def test_siblings_without_a_carried_value_are_no_loop():
    graph, _ = dynamo_graph(Towers(12, 3, 4), X(2, 12, 3))
    after, is_rolled, ledger = roll(graph)
    assert after is graph and not is_rolled
    assert any("siblings" in d.because for d in ledger.decisions)


def test_few_steps_stay_unrolled():
    graph, _ = dynamo_graph(PeepholeLSTM(3, 4), X(3, 2, 3))
    assert not roll(graph)[1]


def test_a_loop_that_saves_little_stays_unrolled_and_the_ledger_says_why():
    graph, _ = dynamo_graph(lambda x: x.sin().cos().sin().cos().sin().cos().sin().cos().sin().cos(), X(3))
    _, is_rolled, ledger = roll(graph)
    assert not is_rolled
    assert [d.because for d in ledger.decisions] == [
        "a loop of 5 steps would save 8 operators only, 0 being added"
    ]


def test_weights_that_differ_by_step_are_not_copied_together():
    """A deep network of equal layers: rolled, it would copy all its weights at every call."""

    def forward(x, *weights):
        for w in weights:
            x = torch.tanh(torch.sigmoid(torch.relu(x @ w) * 2 + 1).cos().sin() - 1)
        return x

    graph, _ = dynamo_graph(forward, X(2, 16), *X(12, 16, 16).unbind())
    _, is_rolled, ledger = roll(graph)
    assert not is_rolled
    assert [d.because for d in ledger.decisions] == [
        "a loop would first copy 12288 bytes of inputs that stand apart"
    ]


@pytest.mark.parametrize("write", ["add_", "setitem", "iadd"])
def test_a_graph_that_writes_in_place_is_left_alone(write):
    def forward(x, out):
        h = x[0].clone()
        for t in range(8):
            h = torch.tanh(h + x[t]) * 2 - x[t]
            if write == "add_":
                out.add_(h)
            elif write == "setitem":
                out[t] = h
            else:
                out += h
        return out

    graph, _ = dynamo_graph(forward, X(8, 2, 3), X(8, 2, 3))
    after, is_rolled, ledger = roll(graph)
    assert after is graph and not is_rolled
    assert ["writes its operand in place" in d.because for d in ledger.decisions] == [True]


def test_random_draws_keep_their_order_and_stay_outside():
    def forward(x):
        h, noise = x[0] * 0, []
        for t in range(8):
            noise.append(torch.rand_like(x[t]))
        for t in range(8):
            h = torch.tanh(h * 2 + x[t]) - torch.sigmoid(x[t] + noise[t])
        return h, torch.rand_like(h)

    before, inputs = dynamo_graph(forward, X(8, 2, 3))
    after, is_rolled, _ = roll(before)
    assert is_rolled
    assert_same_bits(before, after, inputs)


def test_a_draw_in_every_step_keeps_the_loop_unrolled():
    def forward(x):
        h = x[0] * 0
        for t in range(8):
            h = torch.nn.functional.dropout(torch.tanh(h * 2 + x[t]) - x[t])
        return h

    before, _ = dynamo_graph(forward, X(8, 2, 3))
    assert not roll(before)[1]


READINGS = {
    "rows": lambda x, t: x[t],
    "rows of another dimension": lambda x, t: x[:, t],
    "rows of the last": lambda x, t: x[..., t],
    "backwards": lambda x, t: x[-1 - t],
    "every other": lambda x, t: x[2 * t],
    "a part of a row": lambda x, t: x[t, :, 1:3],
    "a row of a row": lambda x, t: x[t, 2],
    "select": lambda x, t: x.select(1, t),
    "narrow": lambda x, t: x.narrow(1, 2 * t, 2),
    "slices end to end": lambda x, t: x[:, 2 * t : 2 * t + 2],
    "slices from the end": lambda x, t: x[2 * (7 - t) : 2 * (7 - t) + 2],
    "slices that overlap": lambda x, t: x[:, t : t + 3],
    "unbind": lambda x, t: x.unbind(2)[t],
    "split": lambda x, t: x.split(2, dim=1)[t],
    "chunk": lambda x, t: torch.chunk(x, 8, 0)[t],
    "a new dimension": lambda x, t: x[t, None],
    "new dimensions around the rest": lambda x, t: x[None, t, ..., None, 1:3],
    "two that move": lambda x, t: x[t, t],
}


@pytest.mark.parametrize("name", READINGS)
def test_whatever_steps_read_of_one_tensor_reaches_them(name):
    def forward(x):
        h = READINGS[name](x, 0) * 0
        for t in range(8):
            h = torch.tanh(h + READINGS[name](x, t)) * 2 - READINGS[name](x, t) * h
        return h

    before, inputs = dynamo_graph(forward, X(16, 16, 16))
    after, is_rolled, _ = roll(before)
    assert is_rolled
    assert_same_bits(before, after, inputs)
    stacks = [n for n in after.graph.nodes if n.target is torch.ops.aten.stack.default]
    assert bool(stacks) == (name in ("slices that overlap", "two that move"))


def test_results_that_leave_the_graph_share_no_memory():
    def forward(x):
        h, states = x[0], []
        for t in range(8):
            h = torch.tanh(h * 2 + x[t]) - x[t]
            states.append(h)
        return (
            torch.stack(states),
            torch.stack(states),
            torch.stack(states).transpose(0, 1),
            states[2],
            h,
            h.t(),
        )

    before, inputs = dynamo_graph(forward, X(8, 2, 3))
    after, is_rolled, _ = roll(before)
    assert is_rolled
    assert_same_bits(before, after, inputs)


def test_carried_values_keep_one_layout():
    """Initial values that are expanded, transposed or parts of others; carried values that are views."""

    def forward(x, a, b):
        h, c, d = a.expand(2, 4), b.t(), x[0, :, :4]
        for t in range(8):
            both = torch.cat([h, c], 1) * 2 + x[t]
            h, new = torch.tanh(both).chunk(2, 1)
            c, d = new - d, c
        return h, c, d

    before, inputs = dynamo_graph(forward, X(8, 2, 8), X(1, 4), X(4, 2))
    after, is_rolled, _ = roll(before)
    assert is_rolled
    with torch.no_grad():
        assert all(map(torch.equal, before(*inputs), after(*inputs)))


def test_a_body_keeps_the_users_lines():
    graph, _ = graph_of("peephole lstm")
    after, _, ledger = roll(graph)
    body = getattr(after, scans(after)[0].args[0].target)
    operators = [n for n in body.graph.nodes if n.op == "call_function" and "clone" not in n.name]
    assert all("recurrences.py" in n.meta["stack_trace"] for n in operators)
    assert ledger.decisions[0].where.endswith(tuple("0123456789"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
@example(1457)  # a step's transposed weight is read after the loop
@example(102)  # every step takes its weight out of the stack of weights anew
@example(208)  # so do two loops, one of which the other feeds
def test_random_recurrences_keep_every_bit(seed):
    model, x = RandomRecurrence(seed), X(9, 2, 3)
    graph = trace_recurrence(model, x)
    after, is_rolled, _ = roll(graph)
    if is_rolled:
        verify(Promise.of(graph), after, "reroll")
        assert_same_bits(graph, after, [x, model.w])


def test_most_random_recurrences_are_rolled():
    rolled = [roll(trace_recurrence(RandomRecurrence(seed), X(9, 2, 3)))[1] for seed in range(12)]
    assert sum(rolled) >= 8


def trace_recurrence(model, x):
    """As ATen; the weight is an input."""
    with torch.no_grad():
        return trace_graph(
            lambda x, w: torch.func.functional_call(model, {"w": w}, (x,)), x, model.w.detach()
        )


@pytest.mark.parametrize("name", LOOPS)
def test_calls_of_one_kind_have_results_of_one_layout(name):
    """Of most calls the layout is concluded from those of their operands, not looked at."""
    arrays = number_graph(graph_of(name)[0])
    layouts = {}
    for node, kind in zip(arrays.nodes, arrays.kinds, strict=True):
        assert layouts.setdefault(kind, _layout(value_of(node))) == _layout(value_of(node))


# --- the proof


def proved(name):
    arrays = number_graph(graph_of(name)[0])
    loops = find_loops(arrays).loops
    assert loops
    assert all(find_flaw(arrays, loop, {}) is None for loop in loops)
    return arrays, loops


def mutants(loop, size):
    """The loop with one claim made false, in every way at every operand."""
    for row, operands in enumerate(loop.operands):
        for position, operand in enumerate(operands):
            for other in {o for o in corrupted(loop, operand, size) if o != operand}:
                changed = (*operands[:position], other, *operands[position + 1 :])
                new = (*loop.operands[:row], changed, *loop.operands[row + 1 :])
                yield operand, other, dataclasses.replace(loop, operands=new)


def corrupted(loop, operand, size):
    match operand:
        case Carried(row, distance, inits):
            yield Carried(row, distance + 1, (*inits, inits[0]))
            yield Carried(row, distance + 1, (inits[0], *inits))
            yield Carried(row, distance, tuple((i + 1) % size for i in inits))
            yield Carried((row + 1) % len(loop.rows), distance, inits)
            yield from (c for c in loop.carried if c != operand)
            yield Invariant(inits[0])
            yield SameStep(row)
        case PerStep(nodes):
            yield PerStep((*nodes[1:], nodes[-1]))
            yield PerStep((nodes[0], *nodes[:-1]))
            yield PerStep(nodes[::-1])
            yield Invariant(nodes[0])
        case SameStep(row):
            yield SameStep((row + 1) % len(loop.rows))
            yield Carried(row, 1, (loop.rows[row][0],))
        case Invariant(node):
            yield Invariant((node + 1) % size)
            yield PerStep((node,) * (loop.trips - 1) + ((node + 1) % size,))


@pytest.mark.parametrize("name", ["peephole lstm", "stack by time", "two steps back", "encoder and decoder"])
def test_a_false_claim_about_an_operand_is_found(name):
    arrays, loops = proved(name)
    tried = 0
    for loop in loops:
        for operand, other, mutant in mutants(loop, arrays.size):
            assert find_flaw(arrays, mutant, {}), f"{operand} became {other}"
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("name", ["peephole lstm", "stack by time", "two steps back"])
def test_a_false_claim_about_a_row_is_found(name):
    arrays, (loop, *_) = proved(name)
    for k, row in enumerate(loop.rows):
        swapped = (row[1], row[0], *row[2:])
        shifted = (*row[1:], row[0])
        twice = (row[0], *row[:-1])
        for steps in (swapped, shifted, twice, row[:-1]):
            rows = (*loop.rows[:k], steps, *loop.rows[k + 1 :])
            assert find_flaw(arrays, dataclasses.replace(loop, rows=rows), {}), (k, steps)


def test_a_loop_around_a_value_that_it_needs_is_found():
    """The steps of one loop with another operator between them: nothing may be read that needs the loop."""

    def forward(x):
        h = x[0]
        for t in range(8):
            h = torch.tanh(h + x[t])
            h = torch.relu(h) if t == 4 else torch.sigmoid(h)
        return h

    graph, _ = dynamo_graph(forward, X(8, 2, 3))
    arrays = number_graph(graph)
    for loop in find_loops(arrays).loops:
        assert find_flaw(arrays, loop, {}) is None
        assert loop.trips <= 5
    after, _, _ = roll(graph)
    x = X(8, 2, 3)
    assert_same_bits(graph, after, [x])


# --- the search


def test_the_search_is_linear_in_the_steps():
    def work(steps):
        arrays = number_graph(dynamo_graph(PeepholeLSTM(3, 4), X(steps, 2, 3))[0])
        found = find_loops(arrays)
        return (search.WORK_PER_NODE * len(arrays.live) - found.budget.left) / len(arrays.live)

    assert work(40) <= 1.5 * work(10)


def test_a_search_without_budget_ends_and_says_so(monkeypatch):
    monkeypatch.setattr(search, "WORK_PER_NODE", 0)
    graph, _ = graph_of("peephole lstm")
    after, is_rolled, ledger = roll(graph)
    assert after is graph and not is_rolled
    assert [d.because for d in ledger.decisions] == [
        "the search for loops was cut short: it took too many steps"
    ]


def test_the_order_of_the_nodes_does_not_matter():
    graph, inputs = graph_of("peephole lstm")
    shuffled = shuffle(graph, random.Random(0))
    after, is_rolled, _ = roll(shuffled)
    assert is_rolled
    assert shape_of_loops(after) == LOOPS["peephole lstm"][2]
    assert_same_bits(graph, after, inputs)


def shuffle(graph_module, rng):
    """The same graph in another topological order."""
    graph, copies = torch.fx.Graph(), {}
    waiting = list(graph_module.graph.nodes)
    output = waiting.pop()
    while waiting:
        ready = [n for n in waiting if all(i in copies for i in n.all_input_nodes)]
        node = ready[0] if ready[0].op == "placeholder" else rng.choice(ready)
        copies[node] = graph.node_copy(node, copies.__getitem__)
        waiting.remove(node)
    graph.node_copy(output, copies.__getitem__)
    return torch.fx.GraphModule(graph_module, graph)
