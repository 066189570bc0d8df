"""Partitions: convex, acyclic, as few as possible, in linear time; effects keep their order."""

from __future__ import annotations

import graphlib
import random
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.cut_partitions import CutPartitions, is_partition
from wolong_fx.passes.edit import silent
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.partition_plan import level_by_colour, plan_partitions
from wolong_fx.testing.graphs import GraphBuilder, has_same_bits, random_graph

aten = torch.ops.aten


@st.composite
def coloured_dags(draw):
    """Operands by node, in topological order, and the set of nodes for kernels."""
    size = draw(st.integers(1, 24))
    operands = {n: draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(size)}
    return operands, draw(st.sets(st.integers(0, size - 1)))


def levels_of(dag):
    operands, kernels = dag
    return level_by_colour(operands, operands.__getitem__, kernels.__contains__)


def partition_of(node, levels, kernels):
    return ("partition", levels[node]) if node in kernels else ("alone", node)


@given(coloured_dags())
def test_partitions_and_what_is_between_them_have_no_cycle(dag):
    operands, kernels = dag
    levels = levels_of(dag)
    edges = {}
    for node, below in operands.items():
        here = partition_of(node, levels, kernels)
        edges.setdefault(here, set()).update({partition_of(p, levels, kernels) for p in below} - {here})
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError


@given(coloured_dags())
def test_no_path_leaves_a_partition_and_comes_back(dag):
    operands, kernels = dag
    levels = levels_of(dag)

    @cache
    def reached(node):
        return {node}.union(*(reached(p) for p in operands[node]))

    for end in kernels:
        for middle in reached(end) - kernels:
            assert all(levels[start] < levels[end] for start in reached(middle) & kernels)


@given(coloured_dags())
def test_there_are_no_more_partitions_than_one_path_needs(dag):
    """A path that changes from kernel to eager and back n times needs n + 1 convex partitions."""
    operands, kernels = dag
    levels = levels_of(dag)

    @cache
    def most_returns(node):
        """Of all paths to `node`: how often they come back into a kernel after leaving one."""
        best = 0
        for p in operands[node]:
            returns = most_returns(p)
            if node not in kernels and p in kernels:
                returns += 1
            best = max(best, returns)
        return best

    needed = max((most_returns(n) for n in kernels), default=-1) + 1
    assert len({levels[n] for n in kernels}) <= needed


@given(coloured_dags(), st.randoms(use_true_random=False))
def test_the_order_of_execution_respects_every_edge(dag, rng):
    operands, kernels = dag
    levels = levels_of(dag)
    moment = {n: (levels[n], n in kernels) for n in operands}
    assert all(moment[p] <= moment[n] for n, below in operands.items() for p in below)


def test_levelling_reads_each_edge_once():
    rng, reads = random.Random(0), Counter()
    operands = {n: [rng.randrange(n) for _ in range(min(n, 3))] for n in range(20_000)}

    def count(node):
        reads[node] += 1
        return operands[node]

    level_by_colour(operands, count, lambda n: n % 3 != 0)
    assert set(reads.values()) == {1} and len(reads) == 20_000


def chain(length):
    """sin, cos, a view, cumsum, and again: the worst case, a partition for every four operators."""
    builder = GraphBuilder(random.Random(0))
    node = builder.add_input(torch.zeros(4))
    with builder.fake_mode:
        flat, tall = torch.zeros(4), torch.zeros(4, 1)
    for _ in range(length // 4):
        for target, args, value in (
            (aten.sin.default, (), flat),
            (aten.cos.default, (), flat),
            (aten.view.default, ([4, 1],), tall),
            (aten.cumsum.default, (0,), tall),
        ):
            node = builder.graph.call_function(target, (node, *args))
            node.meta["val"] = value
    builder.graph.output((node,))
    return torch.fx.GraphModule(torch.nn.Module(), builder.graph)


def test_planning_20_000_operators_asks_about_each_once():
    graph_module, asked = chain(20_000), Counter()

    def why(node):
        asked[node] += 1
        return "no lowering in this test" if node.target is aten.cumsum.default else None

    plan = plan_partitions(graph_module.graph, why, 2, silent)
    assert sum(asked.values()) == 20_000
    assert len(plan.partitions) == 5_000
    assert sum(len(members) for _, members in plan.steps()) <= 25_001


def cut(graph_module, why=lambda node: None, min_ops=1):
    ledger = Ledger()
    manager = PassManager((CutPartitions(why, min_ops=min_ops),), Options(), ledger)
    return manager(graph_module).graph_module, ledger


def names_of(graph_module):
    return [str(n.target).removeprefix("aten.") for n in graph_module.graph.nodes if n.op.startswith("call")]


def unsupported(*targets):
    return lambda node: "no lowering in this test" if node.target in targets else None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_a_graph_cut_by_any_colours_computes_the_same(seed, min_ops):
    rng = random.Random(seed)
    graph_module, inputs = random_graph(rng, 16)
    colours = {}

    def why(node):
        return "a random colour" if colours.setdefault(node.target, rng.random() < 0.4) else None

    torch.manual_seed(0)
    expected = graph_module(*inputs)
    after, _ = cut(graph_module, why, min_ops)
    torch.manual_seed(0)
    assert all(map(has_same_bits, after(*inputs), expected))


def build(make, *inputs):
    builder = GraphBuilder(random.Random(0))
    made = make(builder, *map(builder.add_input, inputs))
    builder.graph.output(made if isinstance(made, tuple) else (made,))
    return torch.fx.GraphModule(torch.nn.Module(), builder.graph)


x = torch.randn(3, 4)


def test_a_supported_graph_is_one_partition():
    graph_module, inputs = build(lambda b, v: b.call(aten.sin.default, b.call(aten.neg.default, v)), x), (x,)
    after, ledger = cut(graph_module)
    assert names_of(after) == ["partition_0", "<built-in function getitem>"]
    assert torch.equal(after(*inputs)[0], x.neg().sin()) and not ledger.fallbacks()


def test_independent_branches_around_one_fallback_need_two_partitions():
    def make(b, v):
        lost = b.call(aten.cumsum.default, b.call(aten.sin.default, v), 0)
        return b.call(aten.neg.default, lost), b.call(aten.exp.default, b.call(aten.cos.default, v))

    after, ledger = cut(build(make, x), unsupported(aten.cumsum.default))
    assert sum(map(is_partition, after.graph.nodes)) == 2
    assert ledger.fallbacks() == {"no lowering in this test": 1}


def test_small_partitions_are_left_to_torch_and_kernels_around_them_may_join():
    """cumsum before, one sin, cumsum after: the sin alone is not worth a kernel."""

    def make(b, v):
        first = b.call(aten.cumsum.default, v, 0)
        second = b.call(aten.cumsum.default, b.call(aten.sin.default, first), 0)
        return b.call(aten.neg.default, b.call(aten.cos.default, second))

    after, ledger = cut(build(make, x), unsupported(aten.cumsum.default), min_ops=2)
    assert [n for n in names_of(after) if "getitem" not in n] == [
        "cumsum.default",
        "sin.default",
        "cumsum.default",
        "partition_0",
    ]
    assert any("min_ops=2" in because for because in ledger.fallbacks())


def test_a_view_is_never_what_a_kernel_copies_for_another():
    """Both kernels and the eager operator look at the same memory, each through its own view."""

    def make(b, v):
        base = b.call(aten.sin.default, v)
        view = b.call(aten.permute.default, base, [1, 0])
        lost = b.call(aten.cumsum.default, view, 0)
        return b.call(aten.add.Tensor, lost, view)

    after, _ = cut(build(make, x), unsupported(aten.cumsum.default))
    parts = [after.get_submodule(str(n.target)) for n in after.graph.nodes if is_partition(n)]
    shapes = [
        sorted(tuple(n.meta["val"].shape) for n in p.graph.nodes if n.op == "placeholder") for p in parts
    ]
    assert shapes == [[(3, 4)], [(3, 4), (4, 3)]]
    assert torch.equal(after(x)[0], x.sin().t().cumsum(0) + x.sin().t())


def test_outputs_that_are_inputs_views_or_none_come_back_as_such():
    def make(b, v):
        made = b.call(aten.sin.default, v)
        return (
            v,
            b.call(aten.permute.default, v, [1, 0]),
            made,
            None,
            made,
            b.call(aten.select.int, made, 0, 1),
        )

    after, _ = cut(build(make, x))
    value = x.clone()
    same, turned, made, nothing, again, row = after(value)
    assert same is value and turned.data_ptr() == value.data_ptr() and nothing is None
    assert made is again and row.data_ptr() == made[1].data_ptr()


def test_a_permuted_result_is_written_by_the_kernel_where_nobody_can_tell():
    after, _ = cut(build(lambda b, v: b.call(aten.permute.default, b.call(aten.sin.default, v), [1, 0]), x))
    assert names_of(after) == ["partition_0", "<built-in function getitem>"]
    assert after(x)[0].stride() == (1, 4)


def test_random_draws_keep_their_order_whatever_their_operands():
    """The first draw must wait for a kernel and a cumsum; the second could run at once, and must not."""

    def make(b, v):
        late = b.call(aten.cumsum.default, b.call(aten.sin.default, v), 0)
        first = b.call(aten.bernoulli.default, b.call(aten.sigmoid.default, late))
        second = b.call(aten.rand.default, [3, 4], device=torch.device("cpu"))
        return first, b.call(aten.mul.Tensor, second, 2)

    graph_module = build(make, x)
    torch.manual_seed(1)
    expected = graph_module(x)
    after, ledger = cut(graph_module, unsupported(aten.cumsum.default))
    draws = [n for n in names_of(after) if n.startswith(("bernoulli", "rand"))]
    assert draws == ["bernoulli.default", "rand.default"]
    torch.manual_seed(1)
    assert all(map(torch.equal, after(x), expected))
    assert ledger.fallbacks()["draws from torch's generator"] == 2


@pytest.mark.parametrize("min_ops", [1, 2])
def test_a_write_comes_after_earlier_looks_and_before_later_ones(min_ops):
    """The kernel's operators before and after the write are independent, but for the memory."""

    def make(b, v, w):
        before = b.call(aten.sin.default, b.call(aten.neg.default, v))
        b.call(aten.copy_.default, v, b.call(aten.exp.default, w))
        after = b.call(aten.cos.default, b.call(aten.view.default, v, [12]))
        return before, b.call(aten.neg.default, after)

    old, new = torch.randn(3, 4), torch.randn(3, 4)
    graph_module, ledger = cut(build(make, old, new), min_ops=min_ops)
    memory = old.clone()
    before, after = graph_module(memory, new)
    assert torch.equal(before, old.neg().sin())
    assert torch.equal(after, -new.exp().view(12).cos()) and torch.equal(memory, new.exp())
    assert ledger.fallbacks()["writes its operand in place"] == 1
