"""Tensors of one number name their shape: a cut between forward and backward has nothing to keep of them."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.free_fills import FreeFills
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.values import aten

FILLS = {
    "full_like": lambda w: torch.full_like(w, 2),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "new_full": lambda w: w.new_full((5,), -0.0),
    "new_zeros": lambda w: w.new_zeros(2, 5),
    "new_ones": lambda w: w.new_ones(()),
}


def traced(function, *inputs):
    graph_module = make_fx(function, tracing_mode="fake")(*inputs)
    PassManager((FreeFills(),), Options(), Ledger())(graph_module)
    return graph_module


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_fill_needs_no_other_tensor(fill, dtype):
    w = torch.ones(3, 4, dtype=dtype)
    graph_module = traced(lambda w, g: fill(w).sum() + g, w, torch.ones(()))
    (placeholder,) = [n for n in graph_module.graph.nodes if n.op == "placeholder" and n.name.startswith("w")]
    (made,) = [n for n in graph_module.graph.nodes if n.target is aten.full.default]
    assert not placeholder.users
    value = made.target(*made.args, **made.kwargs)
    assert value.dtype is fill(w).dtype
    assert torch.equal(value, fill(w))
    assert torch.equal(torch.signbit(value), torch.signbit(fill(w)))


def test_what_is_no_fill_is_left_to_others():
    graph_module = traced(lambda w: torch.rsub(w, 1), torch.ones(3))
    assert [n.target for n in graph_module.graph.nodes if n.op == "call_function"] == [aten.rsub.Scalar]
