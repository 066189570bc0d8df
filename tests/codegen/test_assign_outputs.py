"""A copy into a result disappears into whoever computes what is copied."""

import torch

from wolong_fx.codegen import build_programs
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.tracing import trace_core


def names_of_ops(function, *inputs):
    program = build_programs(trace_core(function, *inputs), Options(), Ledger(), lambda op: op.domain).run
    return [op.name.rpartition("_")[0] for op in program.ops()]


def test_pieces_are_stored_in_a_result_that_is_seen_in_another_shape():
    """Joined as [6, 8], returned as [3, 2, 8]: rows of the one are rows of the other."""

    def stacked(x, y):
        return torch.cat([x.exp(), y.tanh(), x.sin()]).view(3, 2, 8)

    assert names_of_ops(stacked, torch.randn(2, 8), torch.randn(2, 8)) == ["cat"] * 3


def test_a_copy_stays_where_a_row_of_the_result_is_no_row_of_what_is_computed():
    def stacked(x, y):
        return torch.cat([x.exp(), y.tanh()]).view(8, 4)

    assert "output" in names_of_ops(stacked, torch.randn(2, 8), torch.randn(2, 8))
