"""Models that call torch's scan: one kernel forwards, one backwards, the numbers of eager."""

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.pipeline import compile_graph
from wolong_fx.testing.loops import FAMILIES
from wolong_fx.testing.tracing import trace_core


class ScanCell(nn.Module):
    """A gated cell whose recurrence the user rolled by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(5, 16) * 0.3)
        self.u = nn.Parameter(torch.randn(8, 16) * 0.3)

    def forward(self, x):
        def step(state, x):
            h, c = state
            f, g = (x @ self.w + h @ self.u).chunk(2, 1)
            c = f.sigmoid() * c + g.tanh()
            h = c.tanh() * f
            return (h, c), h.clone()

        start = x.new_zeros(x.shape[1], 8), x.new_ones(x.shape[1], 8)
        return scan(step, start, x)[1]


@pytest.mark.cpu
def test_loops_and_what_is_around_them_are_one_kernel():
    for family in ("lstm", "nested", "two_walks", "counters"):
        case, ledger = FAMILIES[family](5, torch.float32), Ledger()
        gm = trace_core(case.function, *case.inputs)
        run = compile_graph(gm, list(case.inputs), Options.of(), role="inference", ledger=ledger)
        assert run.launches == 1 and not ledger.fallbacks(), family
        for ours, eager in zip(run(list(case.inputs)), case.function(*case.inputs), strict=True):
            torch.testing.assert_close(ours, eager)


@pytest.mark.cpu
def test_a_model_with_a_scan_trains_as_in_eager():
    x, gradients = torch.randn(6, 3, 5), []
    for compiled in (False, True):
        model = ScanCell()
        y = torch.compile(model, backend="wolong")(x) if compiled else model(x)
        y.square().sum().backward()
        gradients.append([y.detach(), model.w.grad, model.u.grad])
    for ours, eager in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, eager, atol=2e-5, rtol=1e-4)
