"""A training step of the main job's LSTM cell: eager, wolong, and Inductor if asked for.

    python benchmarks/train_step.py --json
    python benchmarks/train_step.py --inductor model.hidden=256 data.batch=1

Goals: gradients within 1e-5 of eager's, relative, in float32; forward and backward at least 2x eager.
Contenders take turns on the same batch; medians and quartiles of milliseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from hydra import compose, initialize_config_module

import wolong_fx
from wolong_fx.report.measure import Contest, add_output_arguments, machine, measure_interleaved, publish
from wolong_fx.train.config import TrainConfig, leave_compile_open, read_config
from wolong_fx.train.data import load_corpus
from wolong_fx.train.loop import Run

GOAL_SPEEDUP, GOAL_GRADIENT = 2.0, 1e-5


def read_overrides(overrides: Sequence[str]) -> TrainConfig:
    """The main job's configuration with these overrides."""
    leave_compile_open()
    with initialize_config_module("wolong_fx.configs", version_base="1.3"):
        return read_config(compose("train", overrides=list(overrides)))


def forward_and_backward(run: Run) -> None:
    """The part of a step that is compiled."""
    run.optimizer.zero_grad()
    run.compiled(*run.windows.batch(0, run.config.data.batch)).backward()


def gradient_error(run: Run, reference: Run) -> float:
    """Largest over the parameters of |g - g_eager| / |g_eager|, by norm, of the same weights and batch."""
    for each in (run, reference):
        forward_and_backward(each)
    pairs = zip(run.model.parameters(), reference.model.parameters(), strict=True)
    errors = [(own.grad - eager.grad).norm() / eager.grad.norm() for own, eager in pairs]  # type: ignore
    return max(errors).item()


def measure(backends: Sequence[str], overrides: Sequence[str], rounds: int) -> dict[str, object]:
    """All contenders from the same seed; times in milliseconds, first steps in seconds."""
    runs, first_steps = {}, {}
    for backend in backends:
        config = read_overrides([f"compile={backend}", *overrides])
        runs[backend] = Run(config, load_corpus(config.data))
        start = perf_counter()
        forward_and_backward(runs[backend])
        first_steps[backend] = perf_counter() - start
    errors = {name: gradient_error(run, runs["eager"]) for name, run in runs.items() if name != "eager"}
    passes = _in_turn(runs, forward_and_backward, rounds)
    steps = _in_turn(runs, Run.advance, rounds)
    speedup = {name: vars(passes.ratio(name, "wolong")) for name in runs if name != "wolong"}
    stats = wolong_fx.stats(runs["wolong"].model)
    return {
        "benchmark": "train_step",
        "overrides": list(overrides),
        "machine": machine(),
        "first_step_s": first_steps,
        "forward_backward_ms": passes.as_json(),
        "whole_step_ms": steps.as_json(),
        "speedup": speedup,
        "gradient_error": errors,
        "kernel_launches": stats.launches,
        "fallbacks": dict(stats.fallbacks),
        "goals_met": speedup["eager"]["median"] >= GOAL_SPEEDUP and errors["wolong"] <= GOAL_GRADIENT,
    }


def _in_turn(runs: dict[str, Run], act: Callable[[Run], object], rounds: int) -> Contest:
    return measure_interleaved({name: partial(act, run) for name, run in runs.items()}, rounds)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_arguments(parser)
    parser.add_argument(
        "--inductor", action="store_true", help="measure Inductor too; it compiles for minutes"
    )
    parser.add_argument("--rounds", type=int, default=40, help="steps of each contender (40)")
    parser.add_argument("overrides", nargs="*", help="of the main job's configuration")
    chosen = parser.parse_args()
    backends = ["eager", "wolong", *(["inductor"] if chosen.inductor else [])]
    publish(measure(backends, chosen.overrides, chosen.rounds), chosen, _screen)


def _screen(results: Mapping[str, Any]) -> str:
    lines = ["a training step of the main job: forward and backward, milliseconds"]
    for name, spread in results["forward_backward_ms"].items():
        lines.append(f"  {name:10} {spread['median']:8.2f}  ({spread['low']:.2f} to {spread['high']:.2f})")
    for name, ratio in results["speedup"].items():
        lines.append(f"  wolong is {ratio['median']:.2f}x as fast as {name}")
    lines.append(
        f"  gradient error, relative to eager's gradients: {results['gradient_error']['wolong']:.1e}"
    )
    lines.append(
        f"  kernel launches: {results['kernel_launches']}; fallbacks: {results['fallbacks'] or 'none'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
