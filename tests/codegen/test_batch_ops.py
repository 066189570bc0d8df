"""Operator batching: what becomes one operator with one more dimension, and what does not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.fuse_ops import is_heavy
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.graphs import trace_graph

INPUTS = torch.randn(10, 2, 6), torch.randn(6, 3)


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def batched(function, *inputs):
    """Domains of the operators that reduce, without fusion; the results are compared with eager's."""
    gm = trace_graph(lambda *xs: tuple(function(*xs)), *inputs)
    options = Options.of(disable=("fuse-ops", "assign-outputs", "collapse-dims", "order-dims"))
    program = build_programs(gm, options, Ledger(), small_tiles).run
    for ours, eager in zip(run_program(program, list(inputs), seed=0), function(*inputs), strict=True):
        torch.testing.assert_close(ours, eager)
    return [op.domain for op in program.ops() if is_heavy(op)]


def test_products_of_equally_spaced_rows_are_one_operator():
    assert batched(lambda x, w: [x[k] @ w for k in range(4)], *INPUTS) == [(4, 2, 3)]
    assert batched(lambda x, w: [x[7 - 2 * k] @ w for k in range(4)], *INPUTS) == [(4, 2, 3)]


def test_unequally_spaced_rows_are_batched_by_stretches():
    domains = batched(lambda x, w: [x[k] @ w for k in (0, 1, 2, 5, 8)], *INPUTS)
    assert sorted(domains) == [(2, 2, 3), (3, 2, 3)]


def test_different_constants_are_different_work():
    domains = batched(lambda x, w: [(x[k] * (k + 1)).sum(1) for k in range(3)], *INPUTS)
    assert domains == [(2,)] * 3


def test_a_row_beside_a_gathered_position_is_read_where_each_reads_it():
    def picked(x, rows):
        return [torch.index_select(x, 0, rows).select(1, k).sum(0) for k in range(2)]

    batched(picked, INPUTS[0], torch.tensor([1, 3, 3, 0]))


def test_gathered_positions_that_step_are_batched():
    def looked_up(weight, rows):
        return [torch.index_select(weight, 0, rows[k]).sum(0) for k in range(3)]

    assert batched(looked_up, torch.randn(7, 4), torch.randint(0, 7, (3, 5))) == [(3, 4)]


def test_a_batched_result_may_be_written_into_later():
    ones, places = torch.ones(1, 3), torch.tensor([[1, 1, 0]])

    def updated(x, w, places, ones):
        return [(x[k] @ w).scatter_add(0, places, ones) for k in range(3)]

    batched(updated, *INPUTS, places, ones)


def test_padded_windows_are_stepped_through():
    def windows(x, w):
        padded = torch.constant_pad_nd(x, [1, 1])
        return [padded[:, :, k : k + 3].amax(2) for k in range(4)]

    assert batched(windows, *INPUTS) == [(4, 10, 2)]


def domains_of(function, *inputs, disable=()):
    """Domains of all operators; the results are compared with eager's in float64."""
    gm = trace_graph(lambda *xs: tuple(function(*xs)), *inputs)
    program = build_programs(gm, Options.of(disable=disable), Ledger(), small_tiles).run
    exact = function(*(x.double() for x in inputs))
    for ours, wanted in zip(run_program(program, list(inputs), seed=0), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
    return [op.domain for op in program.ops()]


def test_pointwise_siblings_are_one_operator():
    def squares(x):
        rows = [torch.tanh(x[k]) for k in range(5)]
        return [row @ row.T for row in rows]

    assert (5, 2, 6) in domains_of(squares, INPUTS[0], disable=("fuse-ops", "collapse-dims"))


def test_siblings_that_write_side_by_side_step_through_their_result():
    def beside(x, w):
        return [torch.cat([torch.relu(x[k] @ w) for k in (8, 6, 4, 2)])]

    assert domains_of(beside, *INPUTS, disable=("collapse-dims",)) == [(4, 2, 3)]


def test_siblings_in_two_directions_become_one_operator_with_two_more_dimensions():
    def every_pair(x, w):
        return [x[t] @ w[g] for t in range(3) for g in range(4)]

    domains = batched(every_pair, torch.randn(3, 2, 6), torch.randn(4, 6, 5))
    assert domains == [(3, 4, 2, 5)]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_random_siblings_equal_float64(data):
    """Siblings of a random chain, at random rows, joined by a random combination of what they give."""
    rows = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=6))
    columns = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    depth = data.draw(st.integers(1, 3))
    ends = data.draw(st.sampled_from((torch.cat, torch.stack, lambda parts: sum(parts))))

    def siblings(x, w, square):
        parts = []
        for row, column in zip(rows, columns, strict=True):
            part = x[row] @ w[:, column : column + 4]
            for _ in range(depth):
                part = torch.tanh(part @ square) + part.mean(1, keepdim=True)
            parts.append(part)
        return [ends(parts), parts[0] * parts[-1]]

    domains_of(siblings, INPUTS[0], torch.randn(6, 6), torch.randn(4, 4))
