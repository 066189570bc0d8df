"""What the cost model predicts beside what kernels take, for the models of the table, alone and in a team.

    python benchmarks/cost_model.py                  by usual costs, or by those of `wolong calibrate`
    python benchmarks/cost_model.py --rows dlrm-26-b1 decode-d256-l6-c128
    python benchmarks/cost_model.py --write FILE

Times are the least of many launches: a prediction knows no neighbours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp, log
from statistics import fmean
from time import perf_counter
from typing import Any

import torch

import wolong_fx
from wolong_fx.bench.table import ROWS, Row
from wolong_fx.codegen.cost_model import Forecast, forecast
from wolong_fx.codegen.targets import CppTarget
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.report.measure import add_output_arguments, machine, publish
from wolong_fx.runtime import Kernel, machine_costs, team_size
from wolong_fx.runtime.team import FOREVER
from wolong_fx.toolchain import choose_isa

SECONDS = 0.15
"""Of launches, for each kernel and number of threads."""

CLEAR = 1.1
"""How many times as long the wrong number of threads must take for the right one to matter."""

Built = list[tuple[Program, Kernel]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS if not row.is_training]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    options = Options.of(threads=team_size())
    costs = machine_costs(options, choose_isa(options.isa), team_size())
    rows = [measured_row(row, options) for row in ROWS if row.name in arguments.rows]
    result = {"machine": machine(), "costs": costs.as_json(), "rows": rows, **summary(rows)}
    publish(result, arguments, screen)


def measured_row(row: Row, options: Options) -> dict[str, Any]:
    """Microseconds of a row's kernel, predicted and measured."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = row.model().eval()
    inputs = model.example_inputs(row.batch, seed=0)  # type: ignore[operator]
    with torch.no_grad(), kernels_built() as built:
        optimized = wolong_fx.optimize(model, threads=options.threads)
        optimized(*inputs)
        program, kernel = next(pair for pair in reversed(built) if pair[0].name == "wolong")
        alone, team = (least_seconds(kernel, n, lambda: optimized(*inputs)) for n in (1, options.threads))
    predicted = predict(program, options)
    return {
        "row": row.name,
        "us_alone": {"predicted": 1e6 * predicted.alone, "measured": 1e6 * alone},
        "us_team": {"predicted": 1e6 * predicted.team, "measured": 1e6 * team},
        "threads": predicted.threads,
        "choice": verdict(predicted.threads > 1, alone, team),
    }


def predict(program: Program, options: Options) -> Forecast:
    """As the target does it when it may choose."""
    isa, threads = choose_isa(options.isa), options.threads
    return forecast(program, isa, threads, machine_costs(options, isa, threads))


def verdict(is_team: bool, alone: float, team: float) -> str:
    """Whether the number of threads chosen was the faster one."""
    if max(alone, team) < CLEAR * min(alone, team):
        return "even"
    return "right" if is_team == (team < alone) else "wrong"


@contextmanager
def kernels_built() -> Iterator[Built]:
    """The programs and kernels that are built inside."""
    built: Built = []
    original = CppTarget.build

    def build(self: CppTarget, program: Program) -> Kernel:
        built.append((program, original(self, program)))
        return built[-1][1]

    CppTarget.build = build  # type: ignore[method-assign]
    try:
        yield built
    finally:
        CppTarget.build = original  # type: ignore[method-assign]


def least_seconds(kernel: Kernel, threads: int, call: Callable[[], object]) -> float:
    """Of launches on so many threads, repeated inside of a call, where its arguments live."""
    runner, taken = kernel._run, list[float]()

    def repeat(block: object) -> int:
        end = perf_counter() + SECONDS
        while perf_counter() < end or len(taken) < 3:
            start = perf_counter()
            kernel.library.wolong_run(block, threads, FOREVER)
            taken.append(perf_counter() - start)
        return runner(block)  # type: ignore[arg-type]

    kernel._run = repeat
    try:
        call()
    finally:
        kernel._run = runner
    return min(taken)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far predictions are off, as a factor: of each, and at the geometric mean; and the choices."""
    errors = [
        abs(log(row[way]["predicted"] / row[way]["measured"]))
        for row in rows
        for way in ("us_alone", "us_team")
    ]
    choices = [row["choice"] for row in rows]
    return {
        "off_by": {"mean": exp(fmean(errors)), "most": exp(max(errors))},
        "choices": {name: choices.count(name) for name in ("right", "even", "wrong")},
    }


def screen(results: Mapping[str, Any]) -> str:
    """The results for a person."""
    lines = [f"{'microseconds':<26}{'one thread':>22}{'team':>22}  runs on"]
    for row in results["rows"]:
        ways = (row[way] for way in ("us_alone", "us_team"))
        cells = "".join(f"{w['predicted']:>9.1f} for {w['measured']:>8.1f}" for w in ways)
        lines.append(f"{row['row']:<26}{cells}  {row['threads']} ({row['choice']})")
    off, choices = results["off_by"], results["choices"]
    lines.append(f"predicted for measured; off by {off['mean']:.2f}x at the mean, {off['most']:.2f}x at most")
    lines.append("number of threads: " + ", ".join(f"{count} {name}" for name, count in choices.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
