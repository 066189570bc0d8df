"""Every exact pass leaves every bit of every output as it was, on random graphs of awkward cases."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.base import Numerics
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.simplify import Simplify
from wolong_fx.pipeline import copy_graph
from wolong_fx.testing.graphs import has_same_bits, random_graph


def all_is_supported(node):
    return None


EXACT = (Canonicalise(), FoldConstants(), Simplify(), RemoveCommonSubexpressions(), RemoveDeadCode())
# With everything supported, decompose takes apart dropout alone: exact. No kernel reorders sums here.
TABLE = (
    Canonicalise(),
    Decompose(all_is_supported),
    *EXACT[1:],
    CutPartitions(all_is_supported, min_ops=1),
)

many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32)


def run(graph_module, inputs):
    torch.manual_seed(0)
    return graph_module(*inputs), torch.get_rng_state()


def assert_same(graph_module, inputs, passes):
    """The outputs' bits, strides and shared memory, and how far the generator has moved."""
    ledger = Ledger()
    after = PassManager(passes, Options(), ledger)(copy_graph(graph_module)).graph_module
    (old, old_state), (new, new_state) = run(graph_module, inputs), run(after, inputs)
    assert len(old) == len(new)
    assert [i for i, pair in enumerate(zip(old, new, strict=True)) if not has_same_bits(*pair)] == []
    assert torch.equal(old_state, new_state)
    assert shared_memory(old, inputs) == shared_memory(new, inputs)
    return ledger


def shared_memory(outputs, inputs):
    tensors = [t for t in (*inputs, *outputs) if isinstance(t, torch.Tensor)]
    first = {}
    return [first.setdefault(t.untyped_storage().data_ptr(), i) for i, t in enumerate(tensors) if t.numel()]


@pytest.mark.parametrize("a_pass", [*EXACT, Decompose(all_is_supported)], ids=lambda p: p.name)
@many
@given(seeds)
def test_a_pass_changes_no_bit(a_pass, seed):
    graph_module, inputs = random_graph(random.Random(seed), 10)
    assert_same(graph_module, inputs, (a_pass,))


@many
@given(seeds)
def test_the_pipeline_changes_no_bit(seed):
    graph_module, inputs = random_graph(random.Random(seed), 20)
    assert_same(graph_module, inputs, TABLE)


def test_the_random_graphs_reach_every_rule_that_they_should():
    """Without this the properties above could hold because nothing happens."""
    reasons = set()
    for seed in range(100):
        graph_module, inputs = random_graph(random.Random(seed), 20)
        reasons |= {d.because for d in assert_same(graph_module, inputs, TABLE[:-1]).decisions}
    assert len(reasons) > 40
    assert {"two views are one", "times 1 changes nothing", "only numbers decide it"} <= reasons


def test_a_pass_that_says_exact_is_under_test():
    exact = {p.name for p in TABLE if p.numerics is Numerics.EXACT}
    assert exact == {p.name for p in EXACT}
