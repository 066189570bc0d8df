"""A sum of MatMuls becomes one where that moves less memory, and adds up to the same."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.merge_matmuls import MergeMatmuls
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.pipeline import copy_graph
from wolong_fx.testing.graphs import aten, trace_graph

WIDE = 32


def merged(function, *inputs, passes=()):
    """The graph after the pass, which computes the same."""
    graph_module = trace_graph(function, *inputs)
    manager = PassManager([Canonicalise(), *passes, MergeMatmuls(), RemoveDeadCode()], Options(), Ledger())
    after = manager(copy_graph(graph_module)).graph_module
    torch.testing.assert_close(after(*inputs), graph_module(*inputs), rtol=1e-12, atol=1e-12)
    return after


def count(graph_module, target):
    return sum(node.target is target for node in graph_module.graph.nodes)


def pairs(terms, inner=2, rows=WIDE, columns=WIDE):
    generator = torch.Generator().manual_seed(terms)
    shapes = [(inner, rows), (inner, columns)] * terms
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def weight_gradient(*operands):
    total = operands[0].t() @ operands[1]
    for h, dz in zip(operands[2::2], operands[3::2], strict=True):
        total = total + h.t() @ dz
    return total


def test_a_chain_of_added_matmuls_is_one_matmul():
    after = merged(weight_gradient, *pairs(5))
    assert count(after, aten.mm.default) == 1
    assert count(after, aten.add.Tensor) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_any_tree_of_additions_adds_up_to_the_same(seed):
    rng = random.Random(seed)

    def tree(*operands):
        terms = [h.t() @ dz for h, dz in zip(operands[::2], operands[1::2], strict=True)]
        terms += [rng_terms[0](operands[0]) for _ in range(extra)]
        while len(terms) > 1:
            left, right = (terms.pop(chooser.randrange(len(terms))) for _ in range(2))
            terms.append(left + right)
        return terms[0] * 2

    terms, extra = rng.randint(2, 6), rng.randint(0, 2)
    rng_terms = [lambda h: h.sum() + h.new_zeros(WIDE, WIDE)]
    inputs = pairs(terms, inner=rng.randint(1, 3))
    chooser = random.Random(seed)
    graph_module = trace_graph(tree, *inputs)
    manager = PassManager([Canonicalise(), MergeMatmuls(), RemoveDeadCode()], Options(), Ledger())
    after = manager(copy_graph(graph_module)).graph_module
    torch.testing.assert_close(after(*inputs), graph_module(*inputs), rtol=1e-12, atol=1e-12)
    assert count(after, aten.mm.default) == 1


def test_matmuls_whose_operands_are_larger_than_their_sum_stay():
    after = merged(weight_gradient, *pairs(3, inner=100, rows=4, columns=4))
    assert count(after, aten.mm.default) == 3


@pytest.mark.parametrize("reader", ["a term", "a partial sum"])
def test_what_something_else_reads_is_computed_once(reader):
    def function(a, b, c, d, e, f):
        first = a.t() @ b
        partial = first + c.t() @ d
        seen = first if reader == "a term" else partial
        return partial + e.t() @ f + seen.sum()

    after = merged(function, *pairs(3))
    assert count(after, aten.mm.default) == 2
