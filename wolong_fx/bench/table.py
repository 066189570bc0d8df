"""The rows of the benchmark table and their goals, declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from wolong_fx.bench.contenders import (
    EAGER,
    FLOOR,
    HAND,
    INDUCTOR,
    NN_GRU,
    NN_LSTM,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    OURS_BY_TORCH,
)
from wolong_fx.testing.models import (
    CellStack,
    DecodeStep,
    GateGRUStack,
    GateLSTM,
    LiGRU,
    PeepholeLSTM,
    TowerRecommender,
    TreeLSTM,
)


@dataclass(frozen=True)
class Goal:
    """How many times as fast as another `optimize()` must be; of several others, the fastest counts.

    at_least: below 1 for a share of what the machine could do
    """

    against: tuple[str, ...]
    at_least: float

    def __str__(self) -> str:
        return f"{' or '.join(self.against)} >= {self.at_least:.3g}x"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    model: makes it; weights come from torch's global seed
    goals: compared with others; those named are measured
    limit_ms: what a call may take; 0 = not stated
    beside: others that are measured without a goal
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    goals: tuple[Goal, ...]
    batch: int = 1
    is_training: bool = False
    limit_ms: float = 0.0
    beside: tuple[str, ...] = ()

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everyone who is measured, each once, ours last."""
        others = [name for goal in self.goals for name in goal.against]
        return tuple(dict.fromkeys((*others, *self.beside, OURS_BY_TORCH, OURS)))


def goals(given: Mapping[str | tuple[str, ...], float]) -> tuple[Goal, ...]:
    """From a mapping of one other, or several of which the fastest counts, to the least ratio."""
    return tuple(Goal((names,) if isinstance(names, str) else names, ratio) for names, ratio in given.items())


OTHERS = (ONNX_RUNTIME, OPENVINO)
THREE_QUARTERS_OF_PEAK = 0.75

ROWS: tuple[Row, ...] = (
    Row(
        "lstm80-b1-h256",
        "LSTM-80 per gate, batch 1, hidden 256",
        partial(GateLSTM, 256),
        goals({EAGER: 19, INDUCTOR: 12, NN_LSTM: 2.8, OTHERS: 2, HAND: 1}),
        beside=(FLOOR,),
    ),
    Row(
        "lstm80-b1-h128",
        "LSTM-80 per gate, batch 1, hidden 128",
        partial(GateLSTM, 128),
        goals({EAGER: 45, INDUCTOR: 19, NN_LSTM: 3.4, OTHERS: 2.5, HAND: 1}),
        beside=(FLOOR,),
    ),
    Row(
        "lstm80-b16-h256",
        "LSTM-80 per gate, batch 16, hidden 256",
        partial(GateLSTM, 256),
        goals({EAGER: 6, INDUCTOR: 4.7, NN_LSTM: 1.25, OTHERS: 1.25, FLOOR: THREE_QUARTERS_OF_PEAK}),
        batch=16,
        beside=(HAND,),
    ),
    Row(
        "lstm80-b64-h256",
        "LSTM-80 per gate, batch 64, hidden 256",
        partial(GateLSTM, 256),
        goals({EAGER: 3.5, INDUCTOR: 3, NN_LSTM: 1.1, OTHERS: 1.1, FLOOR: THREE_QUARTERS_OF_PEAK}),
        batch=64,
        beside=(HAND,),
    ),
    Row(
        "train-lstm80-b16-h256",
        "training step of LSTM-80, batch 16, hidden 256",
        partial(GateLSTM, 256),
        goals({EAGER: 4.5, INDUCTOR: 3.2, NN_LSTM: 1.2, FLOOR: 1 / 1.4}),
        batch=16,
        is_training=True,
    ),
    Row(
        "ligru80-b1-h256",
        "custom cell: LiGRU, 80 steps, batch 1, hidden 256",
        partial(LiGRU, 256),
        goals({EAGER: 15, INDUCTOR: 8}),
    ),
    Row(
        "peephole80-b1-h256",
        "custom cell: peephole LSTM, 80 steps, batch 1, hidden 256",
        partial(PeepholeLSTM, 256),
        goals({EAGER: 15, INDUCTOR: 8}),
    ),
    Row(
        "gru-3x40-b1-h128",
        "GRU stack, 3 layers x 40 steps, batch 1, hidden 128",
        GateGRUStack,
        goals({EAGER: 25, INDUCTOR: 8, NN_GRU: 8}),
        limit_ms=0.150,
    ),
    Row(
        "dlrm-26-b1",
        "DLRM-like, 26 small towers, batch 1",
        TowerRecommender,
        goals({EAGER: 30, INDUCTOR: 20}),
        limit_ms=0.015,
    ),
    Row("nas-6x8x8", "NASNet-A cells, a stack of 6 on 8x8 maps", CellStack, goals({EAGER: 15, INDUCTOR: 8})),
    Row(
        "tree-lstm-32-h128",
        "Tree-LSTM, 32 leaves, hidden 128",
        TreeLSTM,
        goals({EAGER: 15, INDUCTOR: 8}),
    ),
    Row(
        "decode-d256-l6-c128",
        "transformer decode step, width 256, 6 layers, cache 128",
        DecodeStep,
        goals({EAGER: 4, INDUCTOR: 4}),
    ),
)


def find_row(name: str) -> Row | None:
    """The row of that name."""
    return next((row for row in ROWS if row.name == name), None)
