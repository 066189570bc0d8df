"""Operator batching: what becomes one operator with one more dimension, and what does not."""

import torch

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
