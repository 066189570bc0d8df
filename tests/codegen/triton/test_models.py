"""Models by way of the whole pipeline: their Triton kernels run by simulated blocks, against eager and
float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wolong_fx
from wolong_fx.codegen.targets import compile_for
from wolong_fx.testing.grid_simulator import SimulatedTarget
from wolong_fx.testing.models.recurrent import GateGRUStack, GateLSTM, LiGRU
from wolong_fx.testing.versus_eager import check_inference, check_training


class Attention(nn.Module):
    """One step of attention with a norm before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(24), nn.LayerNorm(24)
        self.of_input, self.of_output = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x):
        q, k, v = (
            y.unflatten(-1, (3, 8)).transpose(1, 2) for y in self.of_input(self.before(x)).chunk(3, -1)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
        return self.after(x + self.of_output((weights @ v).transpose(1, 2).flatten(2)))


MODELS = {
    "lstm": lambda: (GateLSTM(20, 5), GateLSTM(20, 5).example_inputs(3)),
    "ligru": lambda: (LiGRU(18, 4), LiGRU(18, 4).example_inputs(1)),
    "gru stack": lambda: (GateGRUStack(8, 4, layers=2), GateGRUStack(8, 4, layers=2).example_inputs(2)),
    "attention": lambda: (Attention(), (torch.randn(2, 5, 24),)),
    "nn.LSTM": lambda: (nn.LSTM(6, 10, bidirectional=True), (torch.randn(4, 2, 6),)),
    "convolution": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
        ),
        (torch.randn(2, 2, 6, 6),),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_eager_does(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    with compile_for(SimulatedTarget("ieee", blocks=3)):
        stats = wolong_fx.stats(check_inference(model.eval(), inputs))
    assert stats.launches["inference"] >= 1 and not stats.fallbacks


@pytest.mark.parametrize("name", ["lstm", pytest.param("attention", marks=pytest.mark.slow)])
def test_a_training_step_computes_what_eager_does(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    with compile_for(SimulatedTarget("ieee", blocks=2)):
        stats = wolong_fx.stats(check_training(model, inputs))
    assert stats.launches["forward"] >= 1 and stats.launches["backward"] >= 1
