"""The peak that eager is charged with."""

import torch

from wolong_fx.codegen.eager_memory import eager_peak_bytes
from wolong_fx.testing.tracing import trace_core

ROW = 4 * 100


def test_a_chain_holds_two_tensors_at_once():
    gm = trace_core(lambda x: x.exp().tanh().sin().cos(), torch.randn(100))
    assert eager_peak_bytes(gm) == 2 * ROW  # the last is the caller's


def test_views_cost_nothing():
    gm = trace_core(lambda x: x.exp().view(10, 10).t().tanh() + 0, torch.randn(100))
    assert eager_peak_bytes(gm) == 2 * ROW


def test_inputs_and_outputs_are_the_callers():
    assert eager_peak_bytes(trace_core(lambda x: x + 1, torch.randn(100))) == 0
