"""Wide and branching networks without recurrence: recommenders, experts, flows, graphs, losses, images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.versus_eager import check_training

pytestmark = pytest.mark.cpu

BATCH, WIDTH = 4, 6


class Highway(nn.Module):
    """Srivastava et al., 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            h, gate = layer(x).chunk(2, -1)
            x = torch.lerp(x, F.silu(h), gate.sigmoid())
        return x


class Siamese(nn.Module):
    """One tower, used twice: shared weights, cosine similarity and a margin loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(WIDTH, 8), nn.PReLU(), nn.Linear(8, 4))

    def forward(self, a, b, same):
        a, b = self.tower(a), self.tower(b)
        distance = (a - b).square().sum(-1).add(1e-9).sqrt()
        loss = torch.where(same, distance.square(), F.relu(1.0 - distance).square()).mean()
        return loss, F.cosine_similarity(a, b), F.pairwise_distance(a, b)


class Dlrm(nn.Module):
    """Bags of embeddings written as sums, pairwise interactions, towers (Naumov et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 4) for n in (7, 11, 5))
        self.bottom, self.top = nn.Linear(WIDTH, 4), nn.Linear(4 + 6, 1)

    def forward(self, dense, bags):
        dense = F.relu(self.bottom(dense))
        pooled = [table(bags[:, i]).sum(1) for i, table in enumerate(self.tables)]
        features = torch.stack([dense, *pooled], 1)
        row = torch.tensor([i for i in range(4) for j in range(i)])
        column = torch.tensor([j for i in range(4) for j in range(i)])
        pairs = (features @ features.mT)[:, row, column]
        return self.top(torch.cat([dense, pairs], -1)).squeeze(-1).sigmoid()


class Experts(nn.Module):
    """A dense mixture of experts with a top-1 mask and a balance loss."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.w_in = nn.Parameter(torch.randn(3, WIDTH, 8) / 3)
        self.w_out = nn.Parameter(torch.randn(3, 8, WIDTH) / 3)

    def forward(self, x):
        p = self.gate(x).softmax(-1)
        best = (p == p.amax(-1, keepdim=True)).to(p.dtype)
        hidden = F.gelu(torch.einsum("bi,eih->ebh", x, self.w_in), approximate="tanh")
        mixed = torch.einsum("ebh,eho,be->bo", hidden, self.w_out, p * best)
        return mixed, 3 * (best.mean(0) * p.mean(0)).sum()


class Flow(nn.Module):
    """Affine coupling layers with their log-determinant (Dinh et al., 2017), and a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2)
        )

    def forward(self, x):
        log_det = x.new_zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, -1)
            s, t = net(a).chunk(2, -1)
            s = 2 * torch.tanh(s / 2)
            x = torch.cat([b * s.exp() + t, a], -1).flip(-1)
            log_det = log_det + s.sum(-1)
        log_p = -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
        return -(log_p + log_det).mean(), x


class Splines(nn.Module):
    """Cubic B-spline bases by the Cox-de Boor recursion, as in Kolmogorov-Arnold networks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(-2, 2, 9))
        self.weight = nn.Parameter(torch.randn(WIDTH, 5, 3))

    def forward(self, x):
        x = x.clamp(-1.9, 1.9).unsqueeze(-1)
        k = self.knots
        basis = torch.where((x >= k[:-1]) & (x < k[1:]), 1.0, 0.0).to(x.dtype)
        for d in range(1, 4):
            rising = (x - k[: -d - 1]) / (k[d:-1] - k[: -d - 1]) * basis[..., :-1]
            falling = (k[d + 1 :] - x) / (k[d + 1 :] - k[1:-d]) * basis[..., 1:]
            basis = rising + falling
        return torch.einsum("bik,iko->bo", basis, self.weight)


class NasCell(nn.Module):
    """A cell of many small branches on 8x8 maps (Zoph et al., 2018), pooling and shifts as slices."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(5))
        self.pointwise = nn.ParameterList(nn.Parameter(torch.randn(3, 3) / 2) for _ in range(3))

    def forward(self, x):
        left, right = self._branches(x), self._branches(x.flip(-1))
        alpha = self.mix.softmax(0)
        node = sum(a * (p + q) for a, p, q in zip(alpha, left, right, strict=True))
        return torch.cat([node, left[0] * right[1]], 1)

    def _branches(self, x):
        padded = F.pad(x, (1, 1, 1, 1))
        windows = torch.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
        dense = [torch.einsum("nchw,dc->ndhw", x, w) for w in self.pointwise]
        return [F.relu(dense[0]), torch.sigmoid(dense[1]) * dense[2], windows.mean(0), windows.amax(0), x]


class MessagePassing(nn.Module):
    """A graph network: gather along edges, scatter onto nodes, softmax over each node's edges."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.score, self.update = (
            nn.Linear(2 * WIDTH, WIDTH),
            nn.Linear(2 * WIDTH, 1, bias=False),
            nn.GRUCell(WIDTH, WIDTH),
        )

    def forward(self, x, edges):
        source, target = edges
        for _ in range(2):
            both = torch.cat([x[source], x.index_select(0, target)], -1)
            e = torch.tanh(self.score(both)).exp()
            total = x.new_zeros(len(x), 1).index_add(0, target, e)
            weighted = self.message(both) * e / total[target]
            inbox = torch.zeros_like(x).scatter_add(0, target.unsqueeze(1).expand_as(weighted), weighted)
            x = self.update(inbox, x)
        return x


class Vae(nn.Module):
    """Variational autoencoder with both parts of its loss (Kingma and Welling, 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(WIDTH, 6), nn.Linear(3, WIDTH)

    def forward(self, x):
        mean, log_var = self.encode(x).chunk(2, -1)
        z = mean + torch.randn(mean.shape).to(x) * torch.exp(log_var / 2)
        logits = self.decode(F.softplus(z))
        data = F.binary_cross_entropy_with_logits(logits, torch.sigmoid(x), reduction="sum")
        return data - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()


class ActorCritic(nn.Module):
    """A proximal policy step (Schulman et al., 2017): returns by recursion, ratios, clipping, entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(WIDTH, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, states, actions, rewards, done, old):
        h = torch.tanh(self.body(states))
        log_p, values = self.policy(h).log_softmax(-1), self.value(h).squeeze(-1)
        running, returns = values[-1].detach(), []
        for r, d in zip(rewards.flip(0), done.flip(0), strict=True):
            running = r + 0.9 * running * ~d
            returns.append(running)
        returns = torch.stack(returns[::-1])
        advantage = (returns - values).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        ratio = (log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1) - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return -gain.mean() + F.smooth_l1_loss(values, returns) - 0.01 * entropy.mean()


class Quantiles(nn.Module):
    """Pinball and Huber quantile losses over all pairs, and other losses of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, y):
        levels = torch.tensor([0.1, 0.5, 0.9]).to(x)
        error = y.unsqueeze(-1) - self.head(x)
        pinball = torch.maximum(levels * error, (levels - 1) * error).mean()
        huber = (
            torch.abs(levels - (error < 0).to(x))
            * F.huber_loss(error, torch.zeros_like(error), reduction="none")
        ).sum()
        labels = (y > 0).long() + (y > 1).long()
        nll = F.cross_entropy(error, labels, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5]).to(x))
        # Not one number for all rows: its terms cancel, and eager's luck with one rounding would measure us.
        kl = F.kl_div(error.log_softmax(-1), x[:, :3].softmax(-1), reduction="none").sum(-1)
        return (
            pinball,
            huber,
            nll,
            kl,
            F.l1_loss(error, error.detach() + 1),
            F.soft_margin_loss(y, y.detach().sign()),
        )


class Normalised(nn.Module):
    """Every normalisation of torch over one input, and weight normalisation by parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.LayerNorm([6, 5]), nn.GroupNorm(3, 6), nn.InstanceNorm1d(6, affine=True), nn.RMSNorm(5)]
        )
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))

    def forward(self, x):
        return [self.linear(layer(x)) for layer in self.layers]


def rows(n=WIDTH):
    return torch.randn(BATCH, n)


def bags():
    return torch.randint(0, 5, (BATCH, 3, 2))


def episode():
    return [
        rows(),
        torch.randint(0, 3, (BATCH,)),
        torch.randn(BATCH),
        torch.tensor([False, True, False, False]),
        torch.randn(BATCH),
    ]


ONE_KERNEL = {
    "highway": (Highway, lambda: [rows()]),
    "siamese": (Siamese, lambda: [rows(), rows(), torch.tensor([True, False] * (BATCH // 2))]),
    "DLRM": (Dlrm, lambda: [rows(), bags()]),
    "mixture of experts": (Experts, lambda: [rows()]),
    "flow": (Flow, lambda: [rows()]),
    "splines": (Splines, lambda: [rows()]),
    "NAS cell": (NasCell, lambda: [torch.randn(2, 3, 8, 8)]),
    "graph network": (
        MessagePassing,
        lambda: [rows(), torch.tensor([[0, 1, 2, 3, 0, 2], [1, 0, 1, 2, 2, 3]])],
    ),
    "actor-critic": (ActorCritic, episode),
    "losses": (Quantiles, lambda: [rows(), torch.randn(BATCH)]),
    "norms": (Normalised, lambda: [torch.randn(2, 6, 5)]),
}


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_a_network_trains_in_one_kernel_each_way(name):
    torch.manual_seed(1)
    make, make_inputs = ONE_KERNEL[name]
    stats = wolong_fx.stats(check_training(make(), make_inputs()))
    assert (stats.launches, stats.fallbacks) == ({"forward": 1, "backward": 1}, {})


def test_a_variational_autoencoder_draws_eagers_noise():
    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(Vae(), [rows()]))
    assert sum(stats.fallbacks.values()) == 1
    assert stats.launches["backward"] == 1


class MobileNet(nn.Module):
    """An inverted residual block (Sandler et al., 2018) between stem and head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.widen, self.depth = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.narrow, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = F.hardswish(self.norm(self.stem(x)))
        x = x + self.narrow(F.relu6(self.depth(F.relu6(self.widen(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_stack_of_convolutions_trains_in_one_kernel_each_way():
    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(MobileNet(), [torch.randn(2, 3, 8, 8)]))
    assert not stats.fallbacks
    assert stats.launches == {"forward": 1, "backward": 1}


def test_cumulative_operators_fall_back_alone():
    class Cumulative(nn.Module):
        def forward(self, x):
            return torch.sort(x.cumsum(-1).tanh() * 2, dim=-1)[0].exp().cumprod(0) + 1

    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(Cumulative(), [rows()]))
    assert stats.launches["forward"] >= 1
    assert any("cumsum" in reason for reason in stats.fallbacks)
