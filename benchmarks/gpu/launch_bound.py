"""The launch-bound rows of the CPU's table on a GPU, against eager, Inductor, and eager as CUDA graphs.

    python benchmarks/gpu/launch_bound.py
    python benchmarks/gpu/launch_bound.py --only dlrm-26-b1 --quick
    python benchmarks/gpu/launch_bound.py --dry --without inductor

Goals: in the geometric mean at least 2x CUDA graphs, and nowhere slower than 0.95x the fastest other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from wolong_fx.bench.contenders import EAGER, INDUCTOR, OURS
from wolong_fx.bench.gpu.contenders import EAGER_GRAPH
from wolong_fx.bench.gpu.question import Question, Rows, ask
from wolong_fx.bench.gpu.row import GpuRow, Setting, measure_race
from wolong_fx.bench.screen import row_lines
from wolong_fx.bench.table import ROWS, Goal
from wolong_fx.bench.verdict import judge_at_least

OTHERS = (EAGER, INDUCTOR, EAGER_GRAPH)
MEAN_OVER_GRAPHS = 2.0
NEVER_SLOWER = 0.95
DRY_ROW = "dlrm-26-b1"

SUITE = {
    row.name: GpuRow(row.name, row.title, row.model, (Goal(OTHERS, NEVER_SLOWER),), row.batch)
    for row in ROWS
    if row.batch == 1 and not row.is_training
}


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """A row."""
    return measure_race(SUITE[name], setting)


def verdicts(rows: Rows, folder: Path) -> list[dict[str, Any]]:
    """The geometric means, and the row that is slowest beside the others."""
    means = {other: _mean(rows, other) for other in OTHERS}
    return [
        judge_at_least(
            f"{EAGER_GRAPH} >= {MEAN_OVER_GRAPHS:g}x (mean)", means[EAGER_GRAPH], MEAN_OVER_GRAPHS
        ),
        *(judge_at_least(f"{other} >= 1x (mean)", means[other], 1.0) for other in (EAGER, INDUCTOR)),
        judge_at_least(f"the slowest row >= {NEVER_SLOWER:g}x", _slowest(rows), NEVER_SLOWER),
    ]


def _mean(rows: Rows, other: str) -> float | None:
    found = [row["speedup"][other]["median"] for row in rows.values() if other in row["speedup"]]
    return geometric_mean(found) if found else None


def _slowest(rows: Rows) -> float | None:
    """Our speed over that of the fastest other, in the row where it is least."""
    found = [_least(row["speedup"]) for row in rows.values() if row["speedup"]]
    return min(found) if found else None


def _least(speedup: Mapping[str, Mapping[str, float]]) -> float:
    return min(ratio["median"] for ratio in speedup.values())


def names(dry: bool) -> Sequence[str]:
    """Those that benchmarks/gpu/lstm80.py measures too come last; a dry run takes the smallest."""
    return [DRY_ROW] if dry else sorted(SUITE, key=lambda name: name.startswith("lstm80"))


QUESTION = Question(
    "launch_bound",
    "small operators on a GPU: ours against eager, Inductor, and CUDA graphs",
    names,
    measure,
    row_lines,
    verdicts,
    blame=(OURS,),
)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
