"""The shared model is the recurrence it claims to be."""

from __future__ import annotations

import torch

from wolong_fx.testing.models import GateLSTM, same_as_nn_lstm


def test_gate_lstm_computes_what_nn_lstm_computes_from_the_same_weights():
    torch.manual_seed(0)
    model = GateLSTM(hidden=24, steps=7, inputs=10)
    x_TBI = model.example_input(batch=3)
    out, (h, c) = model(x_TBI)
    expected, (h_n, c_n) = same_as_nn_lstm(model)(x_TBI)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(h, h_n[0])
    torch.testing.assert_close(c, c_n[0])


def test_gate_lstm_carries_the_state_it_is_given():
    torch.manual_seed(0)
    model = GateLSTM(hidden=8, steps=6)
    x_TBI = model.example_input(batch=2)
    whole, _ = model(x_TBI)
    first, state = model(x_TBI[:2])
    second, _ = model(x_TBI[2:], *state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_gate_lstm_does_eight_matmuls_a_step_over_80_steps():
    from torch.fx.experimental.proxy_tensor import make_fx

    model = GateLSTM(hidden=4, steps=80).requires_grad_(False)
    calls = [n for n in make_fx(model)(model.example_input()).graph.nodes if n.op == "call_function"]
    matmuls = [n for n in calls if n.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert len(matmuls) == 8 * 80
    assert 1_600 < len(calls) < 2_000
