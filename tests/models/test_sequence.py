"""Attention, transformers and structured prediction over sequences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.versus_eager import check_training

pytestmark = pytest.mark.cpu

TIME, BATCH, WIDTH, TAGS = 4, 2, 8, 3


class AttentiveDecoder(nn.Module):
    """Encoder and decoder with additive attention (Bahdanau et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(2 * WIDTH, WIDTH)
        self.query, self.key, self.score = (nn.Linear(*s) for s in ((WIDTH, 6), (2 * WIDTH, 6), (6, 1)))
        self.score.bias = None  # softmax does not see it: its gradient is noise

    def forward(self, x_BTI, padding_BT):
        states, last = self.encoder(x_BTI)
        keys, h, outputs = self.key(states), last[0], []
        for _ in range(3):
            scores = self.score(torch.tanh(self.query(h).unsqueeze(1) + keys)).squeeze(-1)
            weights = scores.masked_fill(padding_BT, -math.inf).softmax(-1)
            h = self.cell(torch.einsum("bt,bti->bi", weights, states), h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class PointerNetwork(nn.Module):
    """Points at inputs, never twice (Vinyals et al., 2015): argmax, one-hot and a growing mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Linear(2, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.query, self.key, self.v = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Parameter(torch.randn(WIDTH)),
        )

    def forward(self, points_BT2):
        x = self.embed(points_BT2)
        state = (x.mean(1), torch.zeros_like(x[:, 0]))
        chosen = torch.zeros(x.shape[:2], dtype=torch.bool)
        current, log_p, picks = x[:, 0], 0.0, []
        for _ in range(3):
            state = self.cell(current, state)
            scores = torch.tanh(self.key(x) + self.query(state[0]).unsqueeze(1)) @ self.v
            log_probs = scores.masked_fill(chosen, -1e9).log_softmax(-1)
            pick = log_probs.argmax(-1)
            log_p = log_p + log_probs.gather(1, pick.unsqueeze(1)).squeeze(1)
            chosen = chosen | F.one_hot(pick, x.shape[1]).bool()
            current = x[torch.arange(len(x)), pick]
            picks.append(pick)
        return log_p, torch.stack(picks, 1)


class CrfForward(nn.Module):
    """Log-partition function and score of a linear-chain conditional random field, in log space."""

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Linear(WIDTH, TAGS)
        self.move = nn.Parameter(torch.randn(TAGS, TAGS))
        self.first, self.last = nn.Parameter(torch.randn(TAGS)), nn.Parameter(torch.randn(TAGS))

    def forward(self, x_TBI, tags_TB):
        emit = self.emit(x_TBI)
        alpha = self.first + emit[0]
        for e in emit[1:]:
            alpha = torch.logsumexp(alpha.unsqueeze(2) + self.move + e.unsqueeze(1), 1)
        log_z = torch.logsumexp(alpha + self.last, 1)
        score = (
            self.first[tags_TB[0]] + self.last[tags_TB[-1]] + emit.gather(2, tags_TB.unsqueeze(2)).sum((0, 2))
        )
        return (log_z - score - self.move[tags_TB[:-1], tags_TB[1:]].sum(0)).mean()


class Viterbi(nn.Module):
    """The best path: max with indices, then gathers backwards along it."""

    def forward(self, emit_TBN, move_NN):
        best, pointers = emit_TBN[0], []
        for e in emit_TBN[1:]:
            best, pointer = (best.unsqueeze(2) + move_NN).max(1)
            best = best + e
            pointers.append(pointer)
        score, tag = best.max(1)
        path = [tag]
        for pointer in reversed(pointers):
            tag = pointer.gather(1, tag.unsqueeze(1)).squeeze(1)
            path.append(tag)
        return score, torch.stack(path[::-1])


class Ctc(nn.Module):
    """Forward recursion of connectionist temporal classification (Graves et al., 2006), written by hand."""

    def forward(self, logits_TBC, labels_BS):
        log_p = logits_TBC.log_softmax(-1)
        extended = torch.zeros(labels_BS.shape[0], 2 * labels_BS.shape[1] + 1, dtype=torch.int64)
        extended[:, 1::2] = labels_BS
        may_skip = F.pad(extended[:, 2:] != extended[:, :-2], (2, 0)) & (extended != 0)
        alpha = torch.full(extended.shape, -1e30)
        alpha = torch.cat([log_p[0].gather(1, extended[:, :2]), alpha[:, 2:]], 1)
        for p in log_p[1:]:
            one, two = F.pad(alpha[:, :-1], (1, 0), value=-1e30), F.pad(alpha[:, :-2], (2, 0), value=-1e30)
            ways = torch.stack([alpha, one, torch.where(may_skip, two, -1e30)])
            alpha = torch.logsumexp(ways, 0) + p.gather(1, extended)
        return -torch.logsumexp(alpha[:, -2:], 1)


class Positions(nn.Module):
    """Sinusoids (Vaswani et al., 2017) and rotary embeddings (Su et al., 2021), computed in the graph."""

    def forward(self, x_BTI):
        time = torch.arange(x_BTI.shape[1], dtype=x_BTI.dtype).unsqueeze(1)
        half = x_BTI.shape[-1] // 2
        angle = time * torch.exp(torch.arange(half, dtype=x_BTI.dtype) * (-math.log(1e4) / half))
        added = x_BTI + torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
        even, odd = x_BTI[..., ::2], x_BTI[..., 1::2]
        turned = torch.stack(
            [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], -1
        )
        return added, turned.flatten(-2)


class AlibiAttention(nn.Module):
    """Causal attention with linear biases (Press et al., 2022) and a softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTI):
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(x_BTI).chunk(3, -1))
        time = torch.arange(x_BTI.shape[1])
        distance = (time - time.unsqueeze(1)).to(x_BTI.dtype)
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + distance * torch.tensor([0.5, 0.25]).view(2, 1, 1)
        scores = scores.masked_fill(torch.ones_like(distance).triu(1).bool(), -math.inf)
        e = torch.exp(scores - scores.amax(-1, keepdim=True))
        return self.out((e / e.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(-2))


def padding():
    return torch.tensor([[False] * TIME, [False] * (TIME - 1) + [True]])


def causal():
    return nn.Transformer.generate_square_subsequent_mask(TIME)


def states():
    return torch.randn(BATCH, TIME, WIDTH)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x, memory):
        return self.layer(x, memory, tgt_mask=causal().to(x), memory_key_padding_mask=padding())


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, dropout=0.0, batch_first=True, activation="gelu"
        )

    def forward(self, x):
        return self.layer(x, src_key_padding_mask=padding())


ONE_KERNEL = {
    "attentive decoder": (AttentiveDecoder, lambda: [states(), padding()]),
    "CRF": (CrfForward, lambda: [torch.randn(TIME, BATCH, WIDTH), torch.randint(0, TAGS, (TIME, BATCH))]),
    "Viterbi": (Viterbi, lambda: [torch.randn(TIME, BATCH, TAGS), torch.randn(TAGS, TAGS)]),
    "CTC": (Ctc, lambda: [torch.randn(TIME, BATCH, 4), torch.tensor([[1, 2], [3, 3]])]),
    "positions": (Positions, lambda: [states()]),
    "ALiBi": (AlibiAttention, lambda: [states()]),
    "encoder layer": (EncoderLayer, lambda: [states()]),
    "decoder layer": (DecoderLayer, lambda: [states(), states()]),
}


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_a_sequence_model_trains_in_one_kernel_each_way(name):
    torch.manual_seed(1)
    make, make_inputs = ONE_KERNEL[name]
    stats = wolong_fx.stats(check_training(make(), make_inputs()))
    assert (stats.launches, stats.fallbacks) == ({"forward": 1, "backward": 1}, {})


def test_a_pointer_network_trains_in_one_kernel_each_way_beside_torchs_assertions():
    torch.manual_seed(1)
    stats = wolong_fx.stats(check_training(PointerNetwork(), [torch.rand(BATCH, TIME, 2)]))
    assert stats.launches == {"forward": 1, "backward": 1}
    assert set(stats.fallbacks) <= {"may have an effect"}


@pytest.mark.kept_assertions
def test_one_hot_asserts_that_its_classes_are_in_range():
    model, classes = wolong_fx.optimize(OneHot()), torch.tensor([0, 2])
    assert model(classes).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert wolong_fx.stats(model).fallbacks == {"may have an effect": 2}
    with pytest.raises(RuntimeError, match=r"(?i)class values"):
        model(classes + 1)


class OneHot(nn.Module):
    def forward(self, classes):
        return nn.functional.one_hot(classes, 3)
