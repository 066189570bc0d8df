"""Unrolled recurrences of every make: what re-rolling is tested on. T steps, B batch, I inputs, H hidden."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CellChain(nn.Module):
    """One of torch's cells over a sequence; dim: where the steps are in the input and the output."""

    def __init__(self, cell: nn.RNNCellBase, dim: int = 0) -> None:
        super().__init__()
        self.cell, self.dim = cell, dim

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1 - self.dim], self.cell.hidden_size)
        state = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        states = []
        for t in range(x.shape[self.dim]):
            state = self.cell(x.select(self.dim, t), state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, self.dim)


class LiGRU(nn.Module):
    """The light gated unit of Ravanelli et al. (2018): the input is projected outside of the steps."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(inputs, 2 * hidden, bias=False)
        self.u = nn.Linear(hidden, 2 * hidden, bias=False)
        self.norm = nn.LayerNorm(2 * hidden)

    def forward(self, x_TBI: Tensor) -> Tensor:
        w = self.norm(self.w(x_TBI))
        h = x_TBI.new_zeros(x_TBI.shape[1], self.u.in_features)
        states = []
        for t in range(x_TBI.shape[0]):
            a, z = (w[t] + self.u(h)).chunk(2, -1)
            z = torch.sigmoid(z)
            h = z * h + (1 - z) * torch.relu(a)
            states.append(h)
        return torch.stack(states)


class PeepholeLSTM(nn.Module):
    """An LSTM whose gates see the cell state (Gers and Schmidhuber, 2000). Returns all h, last h and c."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(inputs + hidden, 4 * hidden)
        self.p = nn.Parameter(torch.randn(3, hidden))

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = c = x_TBI.new_zeros(x_TBI.shape[1], self.p.shape[1])
        states = []
        for x in x_TBI.unbind(0):
            i, f, g, o = self.w(torch.cat([x, h], -1)).chunk(4, -1)
            i, f = torch.sigmoid(i + self.p[0] * c), torch.sigmoid(f + self.p[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.p[2] * c) * torch.tanh(c)
            states.append(h)
        return torch.stack(states), h, c


class Stack(nn.Module):
    """Layers of recurrent cells; is_by_time: all layers of a step in turn, else all steps of a layer."""

    def __init__(self, inputs: int, hidden: int, layers: int, *, is_by_time: bool) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(hidden if i else inputs, hidden) for i in range(layers))
        self.hidden, self.is_by_time = hidden, is_by_time

    def forward(self, x_TBI: Tensor) -> Tensor:
        zero = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        return self._by_time(x_TBI, zero) if self.is_by_time else self._by_layer(x_TBI, zero)

    def _by_time(self, x_TBI: Tensor, zero: Tensor) -> Tensor:
        states, outputs = [zero] * len(self.cells), []
        for value in x_TBI:
            for layer, cell in enumerate(self.cells):
                value = states[layer] = cell(value, states[layer])
            outputs.append(value)
        return torch.stack(outputs)

    def _by_layer(self, x_TBI: Tensor, zero: Tensor) -> Tensor:
        values: Sequence[Tensor] = list(x_TBI)
        for cell in self.cells:
            h, outputs = zero, []
            for value in values:
                h = cell(value, h)
                outputs.append(h)
            values = outputs
        return torch.stack(list(values))


class Bidirectional(nn.Module):
    """Two recurrences, one from the end; is_interleaved: both take a step in turn."""

    def __init__(self, inputs: int, hidden: int, *, is_interleaved: bool) -> None:
        super().__init__()
        self.ahead, self.back = nn.GRUCell(inputs, hidden), nn.GRUCell(inputs, hidden)
        self.hidden, self.is_interleaved = hidden, is_interleaved

    def forward(self, x_TBI: Tensor) -> Tensor:
        ahead = back = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        there: list[Tensor] = []
        here: list[Tensor] = []
        for t in range(x_TBI.shape[0]):
            ahead = self.ahead(x_TBI[t], ahead)
            there.append(ahead)
            if self.is_interleaved:
                back = self.back(x_TBI[-1 - t], back)
                here.append(back)
        for x in () if self.is_interleaved else reversed(x_TBI.unbind(0)):
            back = self.back(x, back)
            here.append(back)
        return torch.cat([torch.stack(there), torch.stack(here[::-1])], -1)


class EncoderDecoder(nn.Module):
    """A decoder that attends to all states of an encoder (Luong et al., 2015) and reads its own output."""

    def __init__(self, inputs: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRUCell(inputs, hidden), nn.GRUCell(hidden, hidden)
        self.query, self.out, self.steps = nn.Linear(hidden, hidden), nn.Linear(2 * hidden, hidden), steps

    def forward(self, x_TBI: Tensor) -> Tensor:
        h, memory = x_TBI.new_zeros(x_TBI.shape[1], self.query.in_features), []
        for x in x_TBI:
            h = self.encoder(x, h)
            memory.append(h)
        keys_BTH = torch.stack(memory, 1)
        y, outputs = h, []
        for _ in range(self.steps):
            h = self.decoder(y, h)
            weights = torch.softmax((keys_BTH @ self.query(h).unsqueeze(-1)).squeeze(-1), -1)
            context = (weights.unsqueeze(1) @ keys_BTH).squeeze(1)
            y = torch.tanh(self.out(torch.cat([h, context], -1)))
            outputs.append(y)
        return torch.stack(outputs)


class RungeKutta(nn.Module):
    """The classical fourth-order method on a small network: steps without an input."""

    def __init__(self, width: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.steps = steps

    def forward(self, y: Tensor, dt: float = 0.1) -> Tensor:
        for _ in range(self.steps):
            k1 = self.field(y)
            k2 = self.field(y + dt / 2 * k1)
            k3 = self.field(y + dt / 2 * k2)
            y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + self.field(y + dt * k3))
        return y


class TwoStepsBack(nn.Module):
    """A recurrence that reads its states of one and of two steps ago."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_TBI: Tensor) -> Tensor:
        before, last = x_TBI[0] * 0, x_TBI[0] * 2
        states = []
        for x in x_TBI:
            before, last = last, torch.tanh(x + self.w(last) - self.u(before))
            states.append(last)
        return torch.stack(states, 1)


class Scheduled(nn.Module):
    """Steps that use their number: inputs fade in, a mean is corrected, sequences end at their lengths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Linear(width, width)

    def forward(self, x_TBI: Tensor) -> Tensor:
        steps = len(x_TBI)
        lengths = (x_TBI[..., 0] > 0).sum(0)
        h = mean = x_TBI[0] * 0
        for t in range(steps):
            new = torch.tanh(x_TBI[t] * ((t + 1) / steps) + self.w(h))
            mean = mean * 0.9 + new * 0.1
            h = torch.where((lengths > t).unsqueeze(1), mean / (1 - 0.9 ** (t + 1)), h)
        return h


class OddEnds(nn.Module):
    """A recurrence whose first and last steps differ from those between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Linear(width, width)

    def forward(self, x_TBI: Tensor) -> Tensor:
        h = torch.relu(x_TBI[0])
        states = [h]
        for x in x_TBI[1:-1]:
            h = torch.tanh(self.w(h) * x + h)
            states.append(h)
        return torch.stack([*states, self.w(h).sigmoid()])


class Towers(nn.Module):
    """Independent branches of one shape: siblings, not steps."""

    def __init__(self, count: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh()) for _ in range(count))

    def forward(self, x_BNI: Tensor) -> Tensor:
        return torch.cat([tower(x_BNI[:, i]) for i, tower in enumerate(self.towers)], -1)


class RandomRecurrence(nn.Module):
    """A cell drawn from `seed`: random operators on the input, the states and what came before in the step.

    It carries one to three states, some read again two steps later, and returns states by step, the last of
    them, or sums over steps; sometimes its first step is its own.
    """

    def __init__(self, seed: int, width: int = 3) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.width, self.states = width, rng.randint(1, 3)
        self.program = [
            (rng.choice(_OPERATORS), rng.random(), rng.random()) for _ in range(rng.randint(4, 10))
        ]
        self.next = [rng.random() for _ in range(self.states)]
        self.is_backwards, self.is_delayed, self.is_odd = (rng.random() < p for p in (0.3, 0.4, 0.3))
        self.result = rng.choice(("stack", "stack_1", "cat", "last", "some"))
        self.w = nn.Parameter(
            torch.randn(2, width, width, generator=torch.Generator().manual_seed(seed)) * 0.5
        )

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, ...]:
        states = [x_TBI[0] * (0.1 * k) for k in range(self.states)]
        before, results = states, []
        steps = range(x_TBI.shape[0])
        for t in reversed(steps) if self.is_backwards else steps:
            extra = before if self.is_delayed else []
            values = [x_TBI[t], *states, *extra] if t or not self.is_odd else [x_TBI[t] * 2, *states, *extra]
            for operator, first, second in self.program:
                left, right = (values[int(pick * len(values))] for pick in (first, second))
                values.append(self._compute(operator, left, right))
            before, states = states, [values[-1 - int(pick * len(self.program))] for pick in self.next]
            results.append(values[-1])
        return (*self._returned(results), *states)

    def _compute(self, operator: str, left: Tensor, right: Tensor) -> Tensor:
        match operator:
            case "w":
                return left @ self.w[0] + right
            case "linear":
                return torch.nn.functional.linear(left, self.w[1], self.w[0, 0])
            case "mix":
                return torch.sigmoid(left) * right + (1 - torch.sigmoid(left)) * torch.tanh(left)
            case "cut":
                return torch.cat(torch.cat([left, right], 1).chunk(2, 1)[::-1], 1)[:, : self.width]
            case "turn":
                return left.unsqueeze(0).transpose(0, 1).squeeze(1).clamp(-2, 2)
        return torch.tanh(left - right * 0.5)

    def _returned(self, results: list[Tensor]) -> tuple[Tensor, ...]:
        match self.result:
            case "stack":
                return torch.stack(results), torch.stack(results[::-1])
            case "stack_1":
                return (torch.stack(results, 1),)
            case "cat":
                return (torch.cat(results, 1),)
            case "some":
                return results[1], results[3], torch.stack(results[2:-1])
        return (results[-1],)


_OPERATORS = ("w", "linear", "mix", "cut", "turn", "sub")
