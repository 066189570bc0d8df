"""Language models over bytes: one shell, five cores. T steps, B sequences, E embedding, H hidden, V bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wolong_fx.testing.models import GateLSTM
from wolong_fx.train.config import ModelConfig
from wolong_fx.train.data import VOCABULARY


class LanguageModel(nn.Module):
    """Embedding, core, head, and the loss: a training step is one forward graph and one backward graph."""

    def __init__(self, core: nn.Module, *, embed: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embed)
        self.core = core
        self.head = nn.Linear(hidden, VOCABULARY)

    def forward(self, tokens_TB: Tensor, targets_TB: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats; tokens and targets are (T, B) int64."""
        return F.cross_entropy(self.logits(tokens_TB).flatten(0, 1), targets_TB.flatten())

    def logits(self, tokens_TB: Tensor) -> Tensor:
        """(T, B, V) scores of the byte after each position."""
        return self.head(self.core(self.embedding(tokens_TB)))


class Recurrent(nn.Module):
    """A recurrent module without its final state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_TBE: Tensor) -> Tensor:
        return self.layer(x_TBE)[0]


class GateStack(nn.Module):
    """Layers of GateLSTM: a custom cell in a Python loop, what a compiler should make fast."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.embed] + [config.hidden] * (config.layers - 1)
        self.layers = nn.ModuleList(Recurrent(GateLSTM(config.hidden, inputs=width)) for width in widths)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TBE: Tensor) -> Tensor:
        for layer in self.layers:
            x_TBE = self.dropout(layer(x_TBE))
        return x_TBE


class WindowMLP(nn.Module):
    """A feed-forward net over the last K bytes (Bengio et al., 2003)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = config.context
        widths = [config.context * config.embed] + [config.hidden] * config.layers
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TBE: Tensor) -> Tensor:
        steps = x_TBE.shape[0]
        padded = F.pad(x_TBE, (0, 0, 0, 0, self.context - 1, 0))
        x = torch.cat([padded[k : k + steps] for k in range(self.context)], dim=-1)
        for layer in self.layers:
            x = self.dropout(torch.tanh(layer(x)))
        return x


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.project_in = nn.Linear(config.hidden, 3 * config.hidden)
        self.project_out = nn.Linear(config.hidden, config.hidden)

    def forward(self, x_BTH: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project_in(x_BTH).chunk(3, dim=-1)
        )
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.project_out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention and MLP, normalised before each (Xiong et al., 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTH: Tensor) -> Tensor:
        x_BTH = x_BTH + self.dropout(self.attention(self.norm_1(x_BTH)))
        return x_BTH + self.dropout(self.mlp(self.norm_2(x_BTH)))


class Transformer(nn.Module):
    """A decoder-only transformer with learned positions; `length` is the longest sequence."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        self.widen = nn.Linear(config.embed, config.hidden)
        self.position = nn.Parameter(0.02 * torch.randn(length, config.hidden))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, x_TBE: Tensor) -> Tensor:
        x_BTH = self.widen(x_TBE.transpose(0, 1)) + self.position[: x_TBE.shape[0]]
        for block in self.blocks:
            x_BTH = block(x_BTH)
        return self.norm(x_BTH).transpose(0, 1)


def build_model(config: ModelConfig, *, length: int) -> LanguageModel:
    """The model a config describes, for sequences of at most `length` bytes; draws from torch's generator."""
    core = _CORES[config.name](config, length)
    return LanguageModel(core, embed=config.embed, hidden=config.hidden)


def _rnn(kind: type[nn.LSTM] | type[nn.GRU], config: ModelConfig) -> Recurrent:
    # Between layers is the only place where nn.LSTM drops out: with one layer it would warn and do nothing.
    dropout = config.dropout if config.layers > 1 else 0.0
    return Recurrent(kind(config.embed, config.hidden, num_layers=config.layers, dropout=dropout))


_CORES: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "cell": lambda config, length: GateStack(config),
    "lstm": lambda config, length: _rnn(nn.LSTM, config),
    "gru": lambda config, length: _rnn(nn.GRU, config),
    "mlp": lambda config, length: WindowMLP(config),
    "transformer": Transformer,
}
