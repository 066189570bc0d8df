"""`python -m wolong_fx.train.demo`: what one kernel is worth on this machine, on one screen.

First an LSTM of 80 steps, called eagerly, as one kernel, and as nn.LSTM; then the main job for a moment,
wolong against eager. Exit code 0 when both train alike, 1 when their losses differ beyond the tolerance.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

import wolong_fx
from wolong_fx.report.measure import Contest, measure_interleaved, processor_name
from wolong_fx.report.screen import bar_lines, ratio_words, show_status, work_words
from wolong_fx.testing.models import GateLSTM, same_as_nn_lstm
from wolong_fx.train.config import leave_compile_open, read_config
from wolong_fx.train.loop import Outcome, train
from wolong_fx.train.plot import plot_bars, plot_losses

SAMPLE_MS = 10.0  # a fast call is repeated until a sample takes this long
TOLERANCE = 1e-3  # relative; sums in another order drift apart a little more with each step


@dataclass(frozen=True)
class Comparison:
    """LSTM-80: what each call took, and what optimize() made of it.

    seconds: of the optimised model's first call, which compiles
    error, eager_error: largest difference from float64
    """

    contest: Contest
    stats: wolong_fx.Stats
    seconds: float
    error: float
    eager_error: float


@torch.no_grad()
def compare_lstm(*, steps: int = 80, hidden: int = 256, rounds: int = 60) -> Comparison:
    """The same recurrence, weights and input (batch 1) three ways."""
    torch.manual_seed(0)
    eager = GateLSTM(hidden, steps).eval()
    optimized, twin = GateLSTM(hidden, steps).eval(), same_as_nn_lstm(eager).eval()
    optimized.load_state_dict(eager.state_dict())
    wolong_fx.optimize(optimized)
    show_status("compiling the LSTM ...")
    x_TBI = eager.example_input()

    start = perf_counter()
    out_TBH: Tensor = optimized(x_TBI)[0]
    seconds = perf_counter() - start
    exact = GateLSTM(hidden, steps).double()
    exact.load_state_dict(eager.state_dict())
    truth_TBH = exact(x_TBI.double())[0]

    contenders: dict[str, nn.Module] = {"eager": eager, "nn.LSTM": twin, "optimize()": optimized}
    show_status("measuring ...")
    calls = {name: partial(model, x_TBI) for name, model in contenders.items()}
    contest = measure_interleaved(calls, rounds, sample_ms=SAMPLE_MS)
    error, eager_error = ((o - truth_TBH).abs().max().item() for o in (out_TBH, eager(x_TBI)[0]))
    return Comparison(contest, wolong_fx.stats(optimized), seconds, error, eager_error)


def train_both(directory: Path, overrides: Sequence[str]) -> dict[str, Outcome]:
    """The main job, by the same configuration and seed, with and without a compiler."""
    outcomes = {}
    leave_compile_open()
    for backend in ("eager", "wolong"):
        with initialize_config_module("wolong_fx.configs", version_base="1.3"):
            own = [f"compile={backend}", "resume=never", "trainer.progress=false", *overrides]
            config = read_config(compose("train", overrides=own))
        show_status(f"training with compile={backend} ...")
        outcomes[backend] = train(config, directory / backend)
    return outcomes


def largest_difference(one: Sequence[float], two: Sequence[float]) -> float:
    """Of two loss curves, relative to the first; infinite when their lengths differ or a value is none."""
    if not one or len(one) != len(two):
        return float("inf")
    differences = [abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)]
    return max(d if d == d else float("inf") for d in differences)


def lstm_lines(result: Comparison, *, steps: int, hidden: int) -> list[str]:
    """The first half of the screen."""
    spreads = {name: result.contest.spread(name) for name in result.contest.samples}
    rows = {
        name: (s.median, f"{s.median:7.3f} ms, quartiles {s.low:.3f} to {s.high:.3f}")
        for name, s in spreads.items()
    }
    over_eager, over_nn = (result.contest.ratio(name, "optimize()").median for name in ("eager", "nn.LSTM"))
    return [
        f"LSTM, {steps} steps, {8 * steps} matmuls, batch 1, hidden {hidden}, float32; one call",
        *bar_lines(rows),
        f"  optimize() is {ratio_words(over_eager)} eager, {ratio_words(over_nn)} nn.LSTM",
        f"  {work_words(result.stats)}; first call {result.seconds:.1f} s",
        f"  largest error against float64: {result.error:.1e}, eager {result.eager_error:.1e}",
    ]


def training_lines(outcomes: Mapping[str, Outcome], difference: float) -> list[str]:
    """The second half of the screen."""
    eager, own = outcomes["eager"], outcomes["wolong"]
    config = own.run.config
    rows = {name: (o.tokens_per_second, _training_words(o)) for name, o in outcomes.items()}
    verdict = "the same" if difference <= TOLERANCE else "NOT the same"
    return [
        f"Training: {config.model.name}, {config.data.length} steps, batch {config.data.batch}, "
        f"hidden {config.model.hidden}, {own.run.step} steps on the standard library's sources",
        *bar_lines(rows),
        f"  wolong is {ratio_words(own.tokens_per_second / eager.tokens_per_second)} eager; "
        f"its first step, which compiles, took {_first_step_seconds(own):.1f} s",
        f"  {work_words(wolong_fx.stats(own.run.model))}",
        f"  largest relative difference of the losses {difference:.1e}, tolerance {TOLERANCE:g}: {verdict}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, print its screen, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m wolong_fx.train.demo", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where plots and runs go")
    parser.add_argument("--steps", type=int, default=120, help="training steps (120)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return run_demo(
        chosen.dir, training=[f"trainer.steps={chosen.steps}", f"trainer.validate_every={chosen.steps}"]
    )


def run_demo(
    directory: Path, *, training: Sequence[str], steps: int = 80, hidden: int = 256, rounds: int = 60
) -> int:
    """Both halves; `training` are overrides of the main job's configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    load = f"load {os.getloadavg()[0]:.1f} at the start"  # above the number of cores, figures are indicative
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {load}"
    print(f"Wolong FX {wolong_fx.__version__} on {processor_name()}, {threads}\n")
    result = compare_lstm(steps=steps, hidden=hidden, rounds=rounds)
    show_status("")
    print(*lstm_lines(result, steps=steps, hidden=hidden), "", sep="\n", flush=True)
    outcomes = train_both(directory, training)
    show_status("")
    eager, own = outcomes["eager"], outcomes["wolong"]
    difference = max(
        largest_difference(eager.losses(split), own.losses(split)) for split in ("train", "validation")
    )
    print(*training_lines(outcomes, difference), "", sep="\n")
    print(*_plot(directory, result, outcomes), sep="\n")
    return 0 if difference <= TOLERANCE else 1


def _plot(directory: Path, result: Comparison, outcomes: Mapping[str, Outcome]) -> list[str]:
    spreads = {name: result.contest.spread(name) for name in result.contest.samples}
    rows = {name: (s.low, s.median, s.high) for name, s in spreads.items()}
    curves = {name: outcome.records for name, outcome in outcomes.items()}
    written = [
        plot_bars(directory / "lstm80.png", rows, title="LSTM, batch 1: one call", unit="ms"),
        plot_losses(directory / "loss.png", curves, title="wolong against eager, same seed"),
    ]
    return [f"plot: {path}" for path in written if path is not None]


def _training_words(outcome: Outcome) -> str:
    train, held_out = outcome.losses(), outcome.losses("validation")
    losses = f"loss {train[0]:.3f} -> {train[-1]:.3f}, validation {held_out[-1]:.3f}"
    return f"{outcome.tokens_per_second:9,.0f} tokens/s, {losses}"


def _first_step_seconds(outcome: Outcome) -> float:
    data = outcome.run.config.data
    return data.length * data.batch / outcome.records[0]["tokens_per_second"]


if __name__ == "__main__":
    sys.exit(main())
