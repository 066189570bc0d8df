"""A training step of the main job, forward and backward: eager, wolong, nn.LSTM, and Inductor if asked for.

    python benchmarks/train_step.py --json                        # with its default cell model
    python benchmarks/train_step.py model.hidden=256 data.batch=1 # ... with overrides of its configuration

Goals: gradients within 1e-5 of eager's, relative, in float32; forward and backward at least 2x eager.
Contenders take turns on one batch; medians and quartiles of milliseconds, ratios paired round by round.
`parts_ms` says where our own time goes: in the kernel, in allocating its outputs, or around it (the guards of
Dynamo, the wrappers of AOTAutograd, autograd's own book-keeping).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from hydra import compose, initialize_config_module
from torch import Tensor, nn

import wolong_fx
from wolong_fx.bench.stopwatch import Stopwatch, watched_kernels
from wolong_fx.report.measure import Contest, add_output_arguments, machine, measure_interleaved, publish
from wolong_fx.runtime import Kernel
from wolong_fx.train.config import TrainConfig, leave_compile_open, read_config
from wolong_fx.train.data import load_corpus
from wolong_fx.train.loop import Run

GOAL_SPEEDUP, GOAL_GRADIENT = 2.0, 1e-5
OURS, EAGER, EXACT, OF_TORCH = "wolong", "eager", "float64", "nn.LSTM"


@dataclass(frozen=True)
class Contender:
    """A model in training. `loss`: its forward call; `advance`: a whole step, of the main job."""

    model: nn.Module
    loss: Callable[[], Tensor]
    advance: Callable[[], object] | None = None

    def forward_and_backward(self) -> None:
        """The part of a step that is compiled."""
        self.model.zero_grad()
        self.loss().backward()

    def gradients(self) -> list[Tensor]:
        """Of all parameters, after one step."""
        self.forward_and_backward()
        return [p.grad for p in self.model.parameters() if p.grad is not None]


# ---- the job


def main_job(chosen: argparse.Namespace, backends: Sequence[str]) -> dict[str, Contender]:
    """The first batch of the main job, all from one seed; beside it the job with torch's own LSTM."""
    made = {backend: _run(chosen, f"compile={backend}") for backend in backends}
    made[OF_TORCH] = _run(chosen, "compile=eager", "model.name=lstm")
    exact = _run(chosen, "compile=eager")
    exact.model.double()
    return made | {EXACT: exact}


def _run(chosen: argparse.Namespace, *overrides: str) -> Contender:
    config = read_overrides([*chosen.overrides, *overrides])
    run = Run(config, load_corpus(config.data))
    batch = run.windows.batch(0, config.data.batch)
    return Contender(run.model, lambda: run.compiled(*batch), run.advance)


def read_overrides(overrides: Sequence[str]) -> TrainConfig:
    """The main job's configuration with these overrides."""
    leave_compile_open()
    with initialize_config_module("wolong_fx.configs", version_base="1.3"):
        return read_config(compose("train", overrides=list(overrides)))


# ---- what is measured


def measure(chosen: argparse.Namespace) -> dict[str, object]:
    """Everything about one job; times in milliseconds, first steps in seconds."""
    backends = [EAGER, OURS, *(["inductor"] if chosen.inductor else [])]
    contenders = main_job(chosen, backends)
    exact = contenders.pop(EXACT)
    with watched_kernels() as kernels:
        first_steps = {name: _seconds(contenders[name].forward_and_backward) for name in backends}
    errors = gradient_errors({name: contenders[name] for name in backends}, exact)
    passes = measure_interleaved({n: c.forward_and_backward for n, c in contenders.items()}, chosen.rounds)
    speedup = {name: vars(passes.ratio(name, OURS)) for name in contenders if name != OURS}
    stats = wolong_fx.stats(contenders[OURS].model)
    return {
        "benchmark": "train_step",
        "overrides": chosen.overrides,
        "machine": machine(),
        "first_step_s": first_steps,
        "forward_backward_ms": passes.as_json(),
        "parts_ms": time_by_part(contenders[OURS], kernels, chosen.rounds),
        **_whole_steps({name: contenders[name] for name in backends}, chosen.rounds),
        "speedup": speedup,
        **errors,
        "kernel_launches": stats.launches,
        "fallbacks": dict(stats.fallbacks),
        "goals_met": speedup[EAGER]["median"] >= GOAL_SPEEDUP
        and errors["gradient_error"][OURS] <= GOAL_GRADIENT,
    }


def gradient_errors(contenders: Mapping[str, Contender], exact: Contender) -> dict[str, dict[str, float]]:
    """Distances of each contender's gradients from eager's and from float64's."""
    gradients = {name: contender.gradients() for name, contender in contenders.items()}
    truth = exact.gradients()
    return {
        "gradient_error": {n: _distance(g, gradients[EAGER]) for n, g in gradients.items() if n != EAGER},
        "gradient_error_to_float64": {name: _distance(g, truth) for name, g in gradients.items()},
    }


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest over the parameters of |g - g_expected| / |g_expected|, by norm."""
    return max(((f - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True))


def _whole_steps(contenders: Mapping[str, Contender], rounds: int) -> dict[str, object]:
    """Of the main job also the step with its batch, clipping and optimiser."""
    steps = {name: c.advance for name, c in contenders.items() if c.advance}
    contest: Contest | None = measure_interleaved(steps, rounds) if steps else None
    return {"whole_step_ms": contest.as_json()} if contest else {}


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


# ---- where our time goes


def time_by_part(contender: Contender, kernels: Sequence[Kernel], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by direction."""
    watch = Stopwatch()
    laps: dict[str, list[dict[str, float]]] = {"forward": [], "backward": []}
    with watch.watching(kernels):
        for _ in range(rounds):
            contender.model.zero_grad()
            watch.lap()
            loss = watch.around("call", contender.loss)()
            laps["forward"].append(watch.lap())
            watch.around("call", loss.backward)()
            laps["backward"].append(watch.lap())
    return {
        direction: {part: median(lap[part] for lap in taken) for part in taken[0]}
        for direction, taken in laps.items()
    }


# ---- the command


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
    publish(measure(chosen), chosen, _screen)


def _screen(results: Mapping[str, Any]) -> str:
    lines = ["a training step of the main job: forward and backward, milliseconds"]
    for name, spread in results["forward_backward_ms"].items():
        lines.append(f"  {name:10} {spread['median']:8.2f}  ({spread['low']:.2f} to {spread['high']:.2f})")
    for name, ratio in results["speedup"].items():
        lines.append(f"  {OURS} is {ratio['median']:.2f}x as fast as {name}")
    for direction, ms in results["parts_ms"].items():
        parts = ", ".join(f"{part} {ms[part]:.2f}" for part in ("kernel", "outputs", "around"))
        lines.append(f"  {OURS} {direction}: {ms['call']:.2f} ms ({parts})")
    lines.append(f"  gradient error, relative to eager's gradients: {results['gradient_error'][OURS]:.1e}")
    lines.append(f"  relative to float64: {results['gradient_error_to_float64'][OURS]:.1e}, ")
    lines[-1] += f"eager's {results['gradient_error_to_float64'][EAGER]:.1e}"
    lines.append(
        f"  kernel launches: {results['kernel_launches']}; fallbacks: {results['fallbacks'] or 'none'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
