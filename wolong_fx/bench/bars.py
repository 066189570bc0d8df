"""The bars of `wolong bench lstm80`: what each idea is worth on 80 steps of a per-gate LSTM.

From eager to one kernel: operators batched but each still a call of ATen (the gates' matrices side by side,
the input's products of all steps at once; written by hand, which is what that batching comes to); everything
fused into one kernel; and with weights packed into the order that the kernel streams them and results written
where they are read. Beside them nn.LSTM and Inductor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from wolong_fx.bench.contenders import (
    EAGER,
    INDUCTOR,
    NN_LSTM,
    Maker,
    make_eager,
    make_inductor,
    make_nn_lstm,
    make_ours,
)
from wolong_fx.bench.job import Contender, Job
from wolong_fx.bench.race import FULL, Effort, Field, caches, race
from wolong_fx.errors import BadOptionValue
from wolong_fx.report.measure import machine
from wolong_fx.report.screen import bar_lines
from wolong_fx.testing.models import GateLSTM, MergedGateLSTM

BATCHED, FUSED, PLACED = "operator batching only", "fused", "fused, packed, placed"

PACKING_AND_PLACEMENT = ("assign-outputs", "split-prepare", "pack-operands")
"""The steps of code generation that the bar "fused" goes without."""


def _make_batched(job: Job) -> Contender:
    assert isinstance(job.model, GateLSTM)
    return job.contender(MergedGateLSTM(job.model))


BARS: Mapping[str, Maker] = {
    EAGER: make_eager,
    BATCHED: _make_batched,
    FUSED: lambda job: make_ours(job, disable=PACKING_AND_PLACEMENT),
    PLACED: make_ours,
    NN_LSTM: make_nn_lstm,
    INDUCTOR: make_inductor,
}


@torch.no_grad()
def measure_bars(
    *,
    steps: int = 80,
    batch: int = 1,
    hidden: int = 256,
    without: Sequence[str] = (),
    effort: Effort = FULL,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Milliseconds a call by bar, as JSON; bars in `without` are left out."""
    _check(without)
    torch.manual_seed(0)
    job = Job.of(GateLSTM(hidden, steps), batch)
    arrived = Field()
    with caches(effort.keeps_caches):
        for name, maker in BARS.items():
            if name not in without:
                progress(f"making {name}")
                arrived.admit(name, maker, job)
    exact = job.exact_results()
    return {
        "benchmark": "lstm80",
        "steps": steps,
        "batch": batch,
        "hidden": hidden,
        "machine": machine(),
        "ms": race(arrived.contenders, effort, progress).as_json(),
        "error": {name: job.error(one, exact) for name, one in arrived.contenders.items()},
        "first_call_s": arrived.first_calls(effort),
        "missing": arrived.missing,
        "without_steps": {FUSED: PACKING_AND_PLACEMENT},
    }


def _check(without: Sequence[str]) -> None:
    for name in without:
        if name not in BARS:
            names = ", ".join(map(repr, BARS))
            raise BadOptionValue(
                name="without", value=name, where="wolong bench lstm80", expected=f"one of {names}"
            )


def bars_screen(results: Mapping[str, Any]) -> str:
    """The bars as text, slowest first as they are told, each with its time and what it gains over eager."""
    steps, ms = results["steps"], results["ms"]
    title = f"LSTM, {steps} steps, {8 * steps} matmuls, batch {results['batch']}, hidden {results['hidden']}"
    rows = {name: (spread["median"], _words(spread, ms.get(EAGER))) for name, spread in ms.items()}
    missing = [f"  {name}: missing, {why}" for name, why in results["missing"].items()]
    return "\n".join([f"{title}; milliseconds a call, median and quartiles", *bar_lines(rows), *missing])


def _words(spread: Mapping[str, float], eager: Mapping[str, float] | None) -> str:
    gain = f"  {eager['median'] / spread['median']:5.1f}x" if eager else ""
    return f"{spread['median']:7.3f} ms{gain}  ({spread['low']:.3f} to {spread['high']:.3f})"
