"""Recurrent cells that nobody tuned for: each must become one kernel a direction, with eager's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.versus_eager import check_inference, check_training

pytestmark = pytest.mark.cpu

STEPS, BATCH, INPUTS, HIDDEN = 3, 2, 5, 6


def sequence() -> Tensor:
    return torch.randn(STEPS, BATCH, INPUTS)


class Cell(nn.Module):
    """Runs `step` over a sequence; the state is a tensor or a tuple whose first is the output."""

    states = 1

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.x = nn.Linear(INPUTS, gates * HIDDEN)
        self.h = nn.Linear(HIDDEN, gates * HIDDEN, bias=False)

    def forward(self, x_TBI):
        state = tuple(x_TBI.new_zeros(x_TBI.shape[1], HIDDEN) for _ in range(self.states))
        outputs = []
        for x in x_TBI:
            state = self.step(x, *state)
            outputs.append(state[0])
        return torch.stack(outputs)


class LiGru(Cell):
    """Light GRU (Ravanelli et al., 2018): no reset gate, ReLU, normalised input."""

    def __init__(self) -> None:
        super().__init__(2)
        self.norm = nn.LayerNorm(2 * HIDDEN)

    def step(self, x, h):
        z, candidate = (self.norm(self.x(x)) + self.h(h)).chunk(2, -1)
        z = torch.sigmoid(z)
        return (z * h + (1 - z) * torch.relu(candidate),)


class PeepholeLstm(Cell):
    """Gates look at the cell state (Gers and Schmidhuber, 2000)."""

    states = 2

    def __init__(self) -> None:
        super().__init__(4)
        self.peep = nn.Parameter(torch.randn(3, HIDDEN))

    def step(self, x, h, c):
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, -1)
        p_i, p_f, p_o = self.peep
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


class MinimalGatedUnit(Cell):
    """One gate (Zhou et al., 2016); the candidate sees the gated state, so its matmul waits for the gate."""

    def __init__(self) -> None:
        super().__init__(1)
        self.candidate_x, self.candidate_h = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def step(self, x, h):
        f = torch.sigmoid(self.x(x) + self.h(h))
        return ((1 - f) * h + f * torch.tanh(self.candidate_x(x) + self.candidate_h(f * h)),)


class IndRnn(nn.Module):
    """Independently recurrent (Li et al., 2018): the state meets no matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.u = nn.Linear(INPUTS, HIDDEN), nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x_TBI):
        h = torch.zeros(())
        for x in self.x(x_TBI).unbind():
            h = torch.relu(x + self.u * h)
        return h


class Qrnn(nn.Module):
    """Quasi-recurrent (Bradbury et al., 2017): width-2 convolution as two matmuls, then fo-pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before = nn.Linear(INPUTS, 3 * HIDDEN), nn.Linear(INPUTS, 3 * HIDDEN, bias=False)

    def forward(self, x_TBI):
        shifted = F.pad(x_TBI[:-1], (0, 0, 0, 0, 1, 0))
        z, f, o = (self.now(x_TBI) + self.before(shifted)).chunk(3, -1)
        z, f, o = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
        c, outputs = torch.zeros_like(z[0]), []
        for t in range(len(z)):
            c = f[t] * c + (1 - f[t]) * z[t]
            outputs.append(o[t] * c)
        return torch.stack(outputs, 1)


class FastWeights(nn.Module):
    """Linear attention as a recurrence with a matrix state (Schlag et al., 2021, the delta rule)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rate = nn.Linear(INPUTS, 3 * HIDDEN), nn.Linear(INPUTS, 1)

    def forward(self, x_TBI):
        memory, outputs = x_TBI.new_zeros(x_TBI.shape[1], HIDDEN, HIDDEN), []
        for x in x_TBI:
            q, k, v = self.qkv(x).chunk(3, -1)
            k = F.normalize(k, dim=-1)
            old = torch.bmm(memory, k.unsqueeze(-1)).squeeze(-1)
            change = torch.sigmoid(self.rate(x)) * (v - old)
            memory = memory + change.unsqueeze(-1) * k.unsqueeze(-2)
            outputs.append(torch.einsum("bij,bj->bi", memory, q.softmax(-1)))
        return torch.stack(outputs)


class ExponentialGates(Cell):
    """sLSTM (Beck et al., 2024): exponential gates, stabilised by a running maximum."""

    states = 4

    def __init__(self) -> None:
        super().__init__(4)

    def step(self, x, h, c, n, m):
        i, f, z, o = (self.x(x) + self.h(h)).chunk(4, -1)
        log_f = F.logsigmoid(f)
        highest = torch.maximum(log_f + m, i)
        i, f = torch.exp(i - highest), torch.exp(log_f + m - highest)
        c, n = f * c + i * torch.tanh(z), f * n + i
        return torch.sigmoid(o) * c / n.clamp(min=1.0), c, n, highest


class RungeKutta(nn.Module):
    """A neural ordinary differential equation, three steps of the classical fourth-order method."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, INPUTS))

    def forward(self, y, span=0.3):
        for _ in range(3):
            k1 = self.field(y)
            k2 = self.field(y + span / 2 * k1)
            k3 = self.field(y + span / 2 * k2)
            k4 = self.field(y + span * k3)
            y = y + span / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y


class TreeLstm(nn.Module):
    """A binary tree over eight leaves (Tai et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(INPUTS, 2 * HIDDEN)
        self.join = nn.Linear(2 * HIDDEN, 5 * HIDDEN)

    def forward(self, leaves):
        level = [tuple(self.leaf(x).tanh().chunk(2, -1)) for x in leaves.unbind(1)]
        while len(level) > 1:
            level = [self.node(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def node(self, left, right):
        i, f_left, f_right, g, o = self.join(torch.cat([left[0], right[0]], -1)).chunk(5, -1)
        c = f_left.sigmoid() * left[1] + f_right.sigmoid() * right[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Zoneout(Cell):
    """States survive by chance (Krueger et al., 2017): the random draws fall back, the rest does not."""

    def __init__(self) -> None:
        super().__init__(1)

    def step(self, x, h):
        new = torch.tanh(self.x(x) + self.h(h))
        return (torch.where(torch.rand_like(h) < 0.3, h, new),)


class Clockwork(Cell):
    """Parts of the state move at their own pace (Koutnik et al., 2014): writes into slices."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x_TBI):
        h = x_TBI.new_zeros(x_TBI.shape[1], HIDDEN)
        for t, x in enumerate(x_TBI):
            moving = HIDDEN if t % 2 == 0 else HIDDEN // 2
            new = torch.tanh(self.x(x) + self.h(h))
            h = torch.cat([new[:, :moving], h[:, moving:]], -1)
        return h


class Kalman(nn.Module):
    """A Kalman filter with learned dynamics: the inverse falls back, what is around it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.eye(3) + 0.1 * torch.randn(3, 3))
        self.C = nn.Parameter(torch.randn(2, 3))
        self.log_noise = nn.Parameter(torch.zeros(2))

    def forward(self, y_TBO):
        batch = y_TBO.shape[1]
        mean, cov = y_TBO.new_zeros(batch, 3), torch.eye(3).to(y_TBO).expand(batch, 3, 3)
        noise = torch.diag(self.log_noise.exp())
        for y in y_TBO:
            mean = mean @ self.A.T
            cov = self.A @ cov @ self.A.T + 0.1 * torch.eye(3).to(y)
            gain = cov @ self.C.T @ torch.linalg.inv(self.C @ cov @ self.C.T + noise)
            mean = mean + (gain @ (y - mean @ self.C.T).unsqueeze(-1)).squeeze(-1)
            cov = cov - gain @ self.C @ cov
        return mean, cov


ONE_KERNEL = {
    "LiGRU": (LiGru, sequence),
    "peephole LSTM": (PeepholeLstm, sequence),
    "minimal gated unit": (MinimalGatedUnit, sequence),
    "IndRNN": (IndRnn, sequence),
    "QRNN": (Qrnn, sequence),
    "fast weights": (FastWeights, sequence),
    "sLSTM": (ExponentialGates, sequence),
    "Runge-Kutta": (RungeKutta, lambda: torch.randn(BATCH, INPUTS)),
    "tree-LSTM": (TreeLstm, lambda: torch.randn(BATCH, 8, INPUTS)),
    "clockwork": (Clockwork, sequence),
}


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_a_cell_trains_in_one_kernel_each_way(name):
    torch.manual_seed(1)
    make, make_input = ONE_KERNEL[name]
    stats = wolong_fx.stats(check_training(make(), [make_input()]))
    assert (stats.launches, stats.fallbacks) == ({"forward": 1, "backward": 1}, {})


@pytest.mark.parametrize("name", ["LiGRU", "tree-LSTM"])
def test_a_cell_infers_in_one_kernel(name):
    torch.manual_seed(1)
    make, make_input = ONE_KERNEL[name]
    stats = wolong_fx.stats(check_inference(make(), [make_input()]))
    assert (stats.launches, stats.fallbacks) == ({"inference": 1}, {})


def test_a_cell_with_random_draws_makes_those_of_eager():
    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(Zoneout(), [sequence()]))
    assert stats.launches["backward"] == 1
    assert sum(stats.fallbacks.values()) == STEPS  # the draws


def test_an_inverse_within_a_recurrence_falls_back_alone():
    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(Kalman(), [torch.randn(2, BATCH, 2)]))
    assert stats.launches["forward"] == 3  # before, between and after two inverses
    fallbacks = dict(stats.fallbacks)
    assert fallbacks.pop("a call whose effects are unknown", 2) == 2  # the check of the next test
    assert fallbacks == {"no lowering for aten.linalg_inv_ex.default": 2}


@pytest.mark.kept_assertions
def test_an_inverse_of_a_singular_matrix_is_the_error_that_it_is_in_eager():
    model = wolong_fx.optimize(Inverse())
    with torch.no_grad():
        torch.testing.assert_close(model(torch.eye(2)), torch.eye(2) / 2)
        assert "a call whose effects are unknown" in wolong_fx.stats(model).fallbacks
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            model(-torch.eye(2))


class Inverse(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x + torch.eye(2))
