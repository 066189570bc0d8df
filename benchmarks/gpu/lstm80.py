"""80 steps of a per-gate LSTM on a GPU: eager, Inductor, CUDA graphs of both, cuDNN's nn.LSTM, and ours.

    python benchmarks/gpu/lstm80.py
    python benchmarks/gpu/lstm80.py --only lstm80-b1-h256-float32 --budget-s 300
    python benchmarks/gpu/lstm80.py --dry --without inductor "inductor, CUDA graphs"

Beside them the floor of one grid: a barrier and a read of the recurrent weights from L2 a step, as
benchmarks/gpu/barrier.py measured them. Goals are of batch 1, hidden 256, float32.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wolong_fx.bench.contenders import EAGER, INDUCTOR, NN_LSTM, OURS
from wolong_fx.bench.gpu.contenders import EAGER_GRAPH, INDUCTOR_GRAPHS
from wolong_fx.bench.gpu.floors import floor_us
from wolong_fx.bench.gpu.question import Question, Rows, ask, rows_of_question
from wolong_fx.bench.gpu.row import GpuRow, Setting, measure_race
from wolong_fx.bench.screen import row_lines
from wolong_fx.bench.table import goals
from wolong_fx.bench.verdict import judge_at_most
from wolong_fx.testing.models import GateLSTM

STEPS, DRY_STEPS = 80, 3
HIDDEN, DRY_HIDDEN = (256, 128, 512), (16, 8)
GATES = 4
GOALS = goals({EAGER: 30, INDUCTOR_GRAPHS: 3, NN_LSTM: 1.5})
WITHIN_FLOOR = 2.0
ALL = (EAGER, EAGER_GRAPH, INDUCTOR, INDUCTOR_GRAPHS, NN_LSTM)


def rows(dry: bool) -> dict[str, GpuRow]:
    """The row of the goals first, then what is nearest to it."""
    sizes = [
        (batch, hidden, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for batch in (1, 16)
        for hidden in (DRY_HIDDEN if dry else HIDDEN)
    ]
    return {row.name: row for row in (_row(*size, steps=DRY_STEPS if dry else STEPS) for size in sizes)}


def _row(batch: int, hidden: int, dtype: torch.dtype, steps: int) -> GpuRow:
    has_goals = (batch, hidden, dtype) == (1, HIDDEN[0], torch.float32)
    kind = str(dtype).removeprefix("torch.")
    return GpuRow(
        f"lstm{steps}-b{batch}-h{hidden}-{kind}",
        f"LSTM-{steps} per gate, batch {batch}, hidden {hidden}, {kind}",
        partial(GateLSTM, hidden, steps),
        GOALS if has_goals else (),
        batch,
        beside=ALL,
        dtype=dtype,
        limit_launches=1,
    )


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """A row, and the bytes that each of its steps reads again."""
    row = rows(setting.dry)[name]
    model = row.model()
    assert isinstance(model, GateLSTM)
    weights = GATES * model.hidden**2 * row.dtype.itemsize
    return measure_race(row, setting) | {"steps": model.steps, "weights_bytes": weights}


def verdicts(found: Rows, folder: Path) -> list[dict[str, Any]]:
    """How near each row is to the floor, where that was measured."""
    measured = rows_of_question(folder, "barrier")
    if measured.keys() < {"barrier", "weights"}:
        return []
    grids = [measured[name]["grids"] for name in ("barrier", "weights")]
    return [_near_floor(row, floor_us(row["weights_bytes"], *grids)) for row in found.values()]


def _near_floor(row: Mapping[str, Any], step_us: float | None) -> dict[str, Any]:
    """The goal is of one row; of the others it is told how far they are."""
    ours = row["ms"].get(OURS)
    times = 1e3 * ours["median"] / (row["steps"] * step_us) if ours and step_us else None
    return judge_at_most(f"{row['row']} <= {WITHIN_FLOOR:g}x its floor", times, WITHIN_FLOOR) | {
        "floor_us": row["steps"] * step_us if step_us else None
    }


def names(dry: bool) -> Sequence[str]:
    """By importance."""
    return [*rows(dry)]


QUESTION = Question(
    "lstm80",
    "80 steps of a per-gate LSTM on a GPU: ours against eager, Inductor, CUDA graphs and cuDNN",
    names,
    measure,
    row_lines,
    verdicts,
    blame=(OURS,),
)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
