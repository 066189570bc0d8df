"""A training step of LSTM-80 on a GPU, forward and backward: against cuDNN and Inductor with CUDA graphs.

    python benchmarks/gpu/train_step.py
    python benchmarks/gpu/train_step.py --dry --without inductor "inductor, CUDA graphs"

The goals are those of the CPU's table, where one is: none slower than what torch has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from wolong_fx.bench.contenders import EAGER, INDUCTOR, NN_LSTM, OURS
from wolong_fx.bench.gpu.contenders import EAGER_GRAPH, INDUCTOR_GRAPHS
from wolong_fx.bench.gpu.question import Question, ask
from wolong_fx.bench.gpu.row import GpuRow, Setting, measure_race
from wolong_fx.bench.screen import row_lines
from wolong_fx.bench.table import goals
from wolong_fx.testing.models import GateLSTM

STEPS, DRY_STEPS = 80, 3
HIDDEN, DRY_HIDDEN = 256, 8
GOALS = goals({NN_LSTM: 1, INDUCTOR_GRAPHS: 1})
ALL = (EAGER, EAGER_GRAPH, INDUCTOR, INDUCTOR_GRAPHS, NN_LSTM)


def rows(dry: bool) -> dict[str, GpuRow]:
    """By batch."""
    return {row.name: row for row in (_row(batch, dry) for batch in (16, 1))}


def _row(batch: int, dry: bool) -> GpuRow:
    steps, hidden = (DRY_STEPS, DRY_HIDDEN) if dry else (STEPS, HIDDEN)
    return GpuRow(
        f"train-lstm{steps}-b{batch}-h{hidden}",
        f"training step of LSTM-{steps}, batch {batch}, hidden {hidden}",
        partial(GateLSTM, hidden, steps),
        GOALS,
        batch,
        is_training=True,
        beside=ALL,
    )


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """A row."""
    return measure_race(rows(setting.dry)[name], setting)


def names(dry: bool) -> Sequence[str]:
    """By importance."""
    return [*rows(dry)]


QUESTION = Question(
    "train_step",
    "a training step of LSTM-80 on a GPU: ours against cuDNN and Inductor with CUDA graphs",
    names,
    measure,
    row_lines,
    blame=(OURS,),
)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
