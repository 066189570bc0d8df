"""Models that benchmarks, demo and tests share, written the slow way: operator by operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GATES = 4  # input, forget, cell, output: the order of nn.LSTM


class GateLSTM(nn.Module):
    """A one-layer LSTM as a Python loop over steps, with one pair of matmuls for each gate: 8 a step.

    The recurrence is that of Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000).

    hidden: width H of the state
    steps: length T of the sequences that `example_input` makes; forward takes any length
    inputs: width I of the input; 0 = hidden
    """

    def __init__(self, hidden: int, steps: int = 80, *, inputs: int = 0) -> None:
        super().__init__()
        self.hidden, self.steps, self.inputs = hidden, steps, inputs or hidden
        self.W = _parameters(self.inputs, hidden)
        self.U = _parameters(hidden, hidden)
        self.b = _parameters(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H), as nn.LSTM does."""
        bound = self.hidden**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def example_input(self, batch: int = 1, *, seed: int = 0) -> Tensor:
        """A (T, B, I) sequence of normal values, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.steps, batch, self.inputs, generator=generator)

    def forward(
        self, x_TBI: Tensor, h_BH: Tensor | None = None, c_BH: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the states of all steps (T, B, H) and the last (h, c), each (B, H); zeros start it."""
        h = x_TBI.new_zeros(x_TBI.shape[1], self.hidden) if h_BH is None else h_BH
        c = x_TBI.new_zeros(x_TBI.shape[1], self.hidden) if c_BH is None else c_BH
        states = []
        for x in x_TBI.unbind(0):
            h, c = self._step(x, h, c)
            states.append(h)
        return torch.stack(states), (h, c)

    def _step(self, x_BI: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor]:
        gates = zip(self.W, self.U, self.b, strict=True)
        i, f, g, o = (torch.addmm(b, x_BI, W) + h_BH @ U for W, U, b in gates)
        c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_BH), c_BH


def same_as_nn_lstm(model: GateLSTM) -> nn.LSTM:
    """An nn.LSTM with copies of the model's weights: what oneDNN makes of the same recurrence."""
    twin = nn.LSTM(model.inputs, model.hidden)
    weights = {
        "weight_ih_l0": torch.cat(list(model.W), dim=1).T,
        "weight_hh_l0": torch.cat(list(model.U), dim=1).T,
        "bias_ih_l0": torch.cat(list(model.b)),
        "bias_hh_l0": torch.zeros(GATES * model.hidden),
    }
    twin.load_state_dict({name: value.detach() for name, value in weights.items()})
    return twin


def _parameters(*shape: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(GATES))
