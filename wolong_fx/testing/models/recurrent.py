"""Recurrent models as Python loops over steps, one pair of matmuls for each gate.

T steps, B sequences, I inputs, H hidden units, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SequenceModel(nn.Module):
    """A model of sequences (T, B, I). Parameters start uniform in +-1/sqrt(H), as those of nn.LSTM do.

    hidden: width H of the state
    steps: length T of the sequences that `example_input` makes; forward takes any length
    inputs: width I of the input; 0 = hidden
    """

    def __init__(self, hidden: int, steps: int, *, inputs: int = 0) -> None:
        super().__init__()
        self.hidden, self.steps, self.inputs = hidden, steps, inputs or hidden

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H)."""
        bound = self.hidden**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def example_input(self, batch: int = 1, *, seed: int = 0) -> Tensor:
        """A (T, B, I) sequence of normal values, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.steps, batch, self.inputs, generator=generator)

    def example_inputs(self, batch: int = 1, *, seed: int = 0) -> tuple[Tensor, ...]:
        """The arguments of a call."""
        return (self.example_input(batch, seed=seed),)


class GateLSTM(SequenceModel):
    """A one-layer LSTM: 8 matmuls a step, gates in the order of nn.LSTM: input, forget, cell, output.

    The recurrence is that of Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000).
    """

    def __init__(self, hidden: int, steps: int = 80, *, inputs: int = 0) -> None:
        super().__init__(hidden, steps, inputs=inputs)
        self.W = _gates(4, self.inputs, hidden)
        self.U = _gates(4, hidden, hidden)
        self.b = _gates(4, hidden)
        self.reset_parameters()

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
        "bias_hh_l0": torch.zeros(4 * model.hidden),
    }
    twin.load_state_dict({name: value.detach() for name, value in weights.items()})
    return twin


class MergedGateLSTM(SequenceModel):
    """A GateLSTM batched by hand: the gates' matrices side by side, the inputs of all steps in one product.

    One matmul for the input and one a step, where GateLSTM has eight a step; the rest is as many operators.
    """

    def __init__(self, model: GateLSTM) -> None:
        super().__init__(model.hidden, model.steps, inputs=model.inputs)
        self.W, self.U, self.b = (
            nn.Parameter(torch.cat([gate.detach() for gate in gates], dim=-1))
            for gates in (model.W, model.U, model.b)
        )

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the states of all steps (T, B, H) and the last (h, c), each (B, H), from zeros."""
        h = c = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        states = []
        for projected in (x_TBI @ self.W + self.b).unbind(0):
            i, f, g, o = torch.addmm(projected, h, self.U).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states), (h, c)


class PeepholeLSTM(SequenceModel):
    """An LSTM whose gates also see the cell state (Gers and Schmidhuber 2000).

    i = s(x Wi + h Ui + pi c + bi), f likewise, c' = f c + i tanh(x Wg + h Ug + bg),
    o = s(x Wo + h Uo + po c' + bo), h' = o tanh(c'); s the logistic function, p c elementwise.
    """

    def __init__(self, hidden: int, steps: int = 80, *, inputs: int = 0) -> None:
        super().__init__(hidden, steps, inputs=inputs)
        self.W = _gates(4, self.inputs, hidden)
        self.U = _gates(4, hidden, hidden)
        self.b = _gates(4, hidden)
        self.p = _gates(3, hidden)
        self.reset_parameters()

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the states of all steps (T, B, H) and the last (h, c), each (B, H), from zeros."""
        h = c = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        states = []
        for x in x_TBI.unbind(0):
            h, c = self._step(x, h, c)
            states.append(h)
        return torch.stack(states), (h, c)

    def _step(self, x_BI: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor]:
        gates = zip(self.W, self.U, self.b, strict=True)
        i, f, g, o = (x_BI @ W + h_BH @ U + b for W, U, b in gates)
        p_i, p_f, p_o = self.p
        i, f = torch.sigmoid(i + p_i * c_BH), torch.sigmoid(f + p_f * c_BH)
        c_BH = f * c_BH + i * torch.tanh(g)
        return torch.sigmoid(o + p_o * c_BH) * torch.tanh(c_BH), c_BH


class LiGRU(SequenceModel):
    """The light GRU of Ravanelli et al. (2018), without its batch normalisation: one gate, ReLU for tanh.

    z = s(x Wz + h Uz + bz), n = relu(x Wn + h Un + bn), h' = z h + (1 - z) n; s the logistic function.
    """

    def __init__(self, hidden: int, steps: int = 80, *, inputs: int = 0) -> None:
        super().__init__(hidden, steps, inputs=inputs)
        self.W = _gates(2, self.inputs, hidden)
        self.U = _gates(2, hidden, hidden)
        self.b = _gates(2, hidden)
        self.reset_parameters()

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states of all steps (T, B, H) and the last one (B, H); it starts from zeros."""
        h = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        states = []
        for x in x_TBI.unbind(0):
            h = self._step(x, h)
            states.append(h)
        return torch.stack(states), h

    def _step(self, x_BI: Tensor, h_BH: Tensor) -> Tensor:
        gates = zip(self.W, self.U, self.b, strict=True)
        z, n = (x_BI @ W + h_BH @ U + b for W, U, b in gates)
        z = torch.sigmoid(z)
        return z * h_BH + (1 - z) * torch.relu(n)


class GateGRUCell(nn.Module):
    """One step of a GRU (Cho et al. 2014) with the reset gate behind the matmul, as cuDNN and nn.GRU have it.

    r, z = s(x W + b + h U + d), n = tanh(x Wn + bn + r (h Un + dn)), h' = (1 - z) n + z h.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.W, self.b = _gates(3, inputs, hidden), _gates(3, hidden)
        self.U, self.d = _gates(3, hidden, hidden), _gates(3, hidden)

    def forward(self, x_BI: Tensor, h_BH: Tensor) -> Tensor:
        """The next state (B, H)."""
        xr, xz, xn = (torch.addmm(b, x_BI, W) for W, b in zip(self.W, self.b, strict=True))
        hr, hz, hn = (torch.addmm(d, h_BH, U) for U, d in zip(self.U, self.d, strict=True))
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + r * hn) + z * h_BH


class GateGRUStack(SequenceModel):
    """Layers of per-gate GRU cells, every step going through all layers: 18 matmuls a step with 3 layers."""

    def __init__(self, hidden: int = 128, steps: int = 40, *, layers: int = 3, inputs: int = 0) -> None:
        super().__init__(hidden, steps, inputs=inputs)
        widths = [self.inputs] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(GateGRUCell(width, hidden) for width in widths)
        self.reset_parameters()

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the last layer's states (T, B, H) and all layers' last ones (L, B, H), from zeros."""
        states = [x_TBI.new_zeros(x_TBI.shape[1], self.hidden) for _ in self.cells]
        out = []
        for x in x_TBI.unbind(0):
            for layer, cell in enumerate(self.cells):
                x = states[layer] = cell(x, states[layer])
            out.append(x)
        return torch.stack(out), torch.stack(states)


def same_as_nn_gru(model: GateGRUStack) -> nn.GRU:
    """An nn.GRU with copies of the model's weights."""
    twin = nn.GRU(model.inputs, model.hidden, num_layers=len(model.cells))
    weights = {}
    for layer, cell in enumerate(model.cells):
        assert isinstance(cell, GateGRUCell)
        weights[f"weight_ih_l{layer}"] = torch.cat(list(cell.W), dim=1).T
        weights[f"weight_hh_l{layer}"] = torch.cat(list(cell.U), dim=1).T
        weights[f"bias_ih_l{layer}"] = torch.cat(list(cell.b))
        weights[f"bias_hh_l{layer}"] = torch.cat(list(cell.d))
    twin.load_state_dict({name: value.detach() for name, value in weights.items()})
    return twin


def _gates(count: int, *shape: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(count))
