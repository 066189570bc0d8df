"""Every pass leaves the results of a graph as they were: every bit where it is exact, and where it adds in
another order within a bound. On random graphs of awkward cases and on models, as they reach the pass in its
table.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wolong_fx
from wolong_fx import backend, pipeline
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.base import Numerics
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.edit import silent
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.reroll.graph_arrays import value_of
from wolong_fx.passes.simplify import Simplify
from wolong_fx.pipeline import all_passes, copy_graph, dynamo_table, joint_table, pass_table
from wolong_fx.testing import loops, models
from wolong_fx.testing.graphs import has_same_bits, random_graph, trace_graph
from wolong_fx.testing.oracle import widened
from wolong_fx.testing.random_loops import random_loop
from wolong_fx.testing.recurrences import RandomRecurrence
from wolong_fx.testing.versus_eager import infer, train_step

TOLERANCE = 1e-10  # of float64, where a pass may add in another order


def all_is_supported(node):
    return None


# ---- the graphs that reach a table


def graph_with_updates(rng):
    return random_graph(rng, 10, has_updates=True)


def loop_of_few_steps(rng):
    """In float64: only then do the results say how far a sum in another order may be off."""
    return random_loop(rng, trips=rng.randint(1, 3))


def unrolled_recurrence(rng):
    model, x = RandomRecurrence(rng.randrange(2**32)), torch.randn(9, 2, 3)

    def function(x, w):
        return torch.func.functional_call(model, {"w": w}, (x,))

    with torch.no_grad():
        return trace_graph(function, x, model.w.detach()), [x, model.w.detach()]


def training_step(rng):
    case = loops.differentiated(loops.random_loop(rng))
    return trace_graph(case.function, *case.inputs), list(case.inputs)


OPTIONS = Options(min_ops=1)
TABLES = {  # each table of passes, and what it works on
    dynamo_table(): (unrolled_recurrence,),
    joint_table(): (training_step,),
    pass_table(OPTIONS): (graph_with_updates, loop_of_few_steps),
}
PASSES = [(a_pass, table) for table in TABLES for a_pass in table]

few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32)
each_pass = pytest.mark.parametrize(("a_pass", "table"), PASSES, ids=lambda p: getattr(p, "name", ""))


def graph_for(a_pass, table, seed):
    """A random graph after the passes that come before this one, and inputs for it."""
    rng = random.Random(seed)
    is_exact = a_pass.numerics is Numerics.EXACT
    made = [make for make in TABLES[table] if is_exact or make is not graph_with_updates]
    graph_module, inputs = rng.choice(made)(rng)
    before = PassManager(table[: table.index(a_pass)], OPTIONS, Ledger())
    return before(graph_module).graph_module, inputs


def run(graph_module, inputs):
    """Results, what is left in the inputs, and how far the generator has moved."""
    inputs = [x.clone() for x in inputs]
    torch.manual_seed(0)
    with torch.no_grad():
        results = graph_module(*inputs)
    return [*results, *inputs], torch.get_rng_state()


def shared_memory(values):
    tensors = [t for t in values if isinstance(t, torch.Tensor)]
    first = {}
    return [first.setdefault(t.untyped_storage().data_ptr(), i) for i, t in enumerate(tensors) if t.numel()]


def assert_same(graph_module, inputs, passes, is_exact=True):
    """The same results after the passes; gives the ledger."""
    ledger = Ledger()
    old = run(graph_module, inputs)  # before: a pass may change partitions, which copies share
    after = PassManager(passes, OPTIONS, ledger)(copy_graph(graph_module)).graph_module
    assert_same_results(old, run(after, inputs), is_exact)
    return ledger


def assert_same_results(old_run, new_run, is_exact):
    """The outputs' bits, strides and shared memory, and how far the generator has moved."""
    (old, old_state), (new, new_state) = old_run, new_run
    assert len(old) == len(new)
    if is_exact:
        assert [i for i, pair in enumerate(zip(old, new, strict=True)) if not has_same_bits(*pair)] == []
    else:
        torch.testing.assert_close(
            new, old, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True, check_stride=True
        )
    assert torch.equal(old_state, new_state)
    assert shared_memory(old) == shared_memory(new)


# ---- every pass by itself


@each_pass
@few
@given(seeds)
def test_a_pass_keeps_the_results(a_pass, table, seed):
    graph_module, inputs = graph_for(a_pass, table, seed)
    assert_same(graph_module, inputs, (a_pass,), a_pass.numerics is Numerics.EXACT)


@each_pass
def test_the_random_graphs_give_every_pass_something_to_do(a_pass, table):
    """Without this the property above could hold because nothing happens."""
    graphs = (graph_for(a_pass, table, seed)[0] for seed in range(60))
    assert any(a_pass.apply(graph, silent).modified for graph in graphs)


def test_every_pass_is_under_test():
    assert {a_pass.name for a_pass, _ in PASSES} == {a_pass.name for a_pass in all_passes(OPTIONS)}


# ---- every pass on models


MODELS = {
    "lstm": lambda: models.GateLSTM(6, 8),
    "lstm, gates merged": lambda: models.MergedGateLSTM(models.GateLSTM(6, 8)),
    "peephole lstm": lambda: models.PeepholeLSTM(6, 8),
    "ligru": lambda: models.LiGRU(6, 8),
    "gru stack": lambda: models.GateGRUStack(6, 8, layers=2),
    "tree lstm": lambda: models.TreeLSTM(6, models.balanced_tree(4)),
    "recommender": lambda: models.TowerRecommender((5, 7, 9), dense=3, embed=4, hidden=5),
    "cells of convolutions": lambda: models.CellStack(1, channels=2, size=4),
    "decode step": lambda: models.DecodeStep(8, layers=2, heads=2, positions=6, vocabulary=11, batch=2),
}
QUICK = ("ligru", "tree lstm", "recommender", "decode step")  # without gradients
CALLS = [(name, is_training) for name in MODELS for is_training in (False, True)]


def graphs_of(model, inputs, monkeypatch):
    """What each table is given of a call of the model: table, graph."""
    kept = []

    def roll_loops(gm, *rest):
        kept.append((dynamo_table(), copy_graph(gm)))
        return roll(gm, *rest)

    def partition(joint, inputs, **rest):
        kept.append((joint_table(), copy_graph(joint)))
        return cut(joint, inputs, **rest)

    def compile_graph(gm, inputs, options, *, role, ledger, **rest):
        kept.append((pass_table(OPTIONS), copy_graph(gm)))
        return pipeline.run_eagerly(gm, role, "the test runs it", ledger)

    roll, cut = pipeline.roll_loops, backend.partition_joint_graph
    monkeypatch.setattr(pipeline, "roll_loops", roll_loops)
    monkeypatch.setattr(backend, "partition_joint_graph", partition)
    monkeypatch.setattr(pipeline, "compile_graph", compile_graph)
    train_step(wolong_fx.optimize(model), inputs) if model.training else infer(
        wolong_fx.optimize(model), inputs
    )
    return kept


def drawn_like(value):
    """A tensor of this shape, dtype and strides; positive, and small as an index."""
    drawn = torch.rand(value.shape, dtype=torch.float64)
    drawn = drawn if value.is_floating_point() else drawn.round()
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(drawn)


@pytest.mark.parametrize(
    ("name", "is_training"),
    [pytest.param(n, t, marks=() if n in QUICK and not t else pytest.mark.slow) for n, t in CALLS],
)
def test_no_pass_changes_what_a_model_computes(name, is_training, monkeypatch):
    model = MODELS[name]().double().train(is_training)
    inputs = [widened(x) for x in model.example_inputs(2)]
    graphs = graphs_of(model, inputs, monkeypatch)
    expected = [dynamo_table(), joint_table(), *[pass_table(OPTIONS)] * 2]
    assert [table for table, _ in graphs] == (expected if is_training else expected[::2])
    for table, graph in graphs:
        given = [drawn_like(value_of(node)) for node in graph.graph.find_nodes(op="placeholder")]
        for a_pass in table:
            old = run(graph, given)
            graph = a_pass(copy_graph(graph)).graph_module
            assert_same_results(old, run(graph, given), a_pass.numerics is Numerics.EXACT)


# ---- all of them


EXACT = (Canonicalise(), FoldConstants(), Simplify(), RemoveCommonSubexpressions(), RemoveDeadCode())
# With everything supported, decompose takes apart dropout alone: exact. No kernel reorders sums here.
TABLE = (
    Canonicalise(),
    Decompose(all_is_supported),
    *EXACT[1:],
    CutPartitions(all_is_supported, min_ops=1),
)


@pytest.mark.parametrize("a_pass", [*EXACT, Decompose(all_is_supported)], ids=lambda p: p.name)
@many
@given(seeds)
def test_a_pass_by_itself_changes_no_bit_of_a_graph_that_no_other_has_seen(a_pass, seed):
    assert_same(*random_graph(random.Random(seed), 10), (a_pass,))


@many
@given(seeds)
def test_the_pipeline_changes_no_bit(seed):
    graph_module, inputs = random_graph(random.Random(seed), 20, has_updates=seed % 2 == 0)
    assert_same(graph_module, inputs, TABLE)


def test_the_random_graphs_reach_every_rule_that_they_should():
    """Without this the properties above could hold because nothing happens."""
    reasons = set()
    for seed in range(100):
        graph_module, inputs = random_graph(random.Random(seed), 20)
        reasons |= {d.because for d in assert_same(graph_module, inputs, TABLE[:-1]).decisions}
    assert len(reasons) > 40
    assert {"two views are one", "times 1 changes nothing", "only numbers decide it"} <= reasons
