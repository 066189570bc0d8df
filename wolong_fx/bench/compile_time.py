"""Where the seconds of a first call go: into tracing, which is torch's, and into our own steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

import wolong_fx
from wolong_fx import Stats
from wolong_fx.bench.job import Job
from wolong_fx.bench.verdict import judge_at_most
from wolong_fx.capture.record import AOT_AND_COMPILE
from wolong_fx.testing.models import GateLSTM

BUILD = "build"  # the step that calls the C++ compiler

# Goals, in seconds, of 80 steps: (kind, cache, part) -> at most.
LIMITS_S: Mapping[tuple[str, str, str], float] = {
    ("forward", "cold", "ours"): 2.0,
    ("training", "cold", "ours"): 4.0,
    ("forward", "cold", "first_call"): 5.0,
    ("training", "cold", "first_call"): 8.0,
    ("forward", "warm", "ours"): 0.3,
    ("training", "warm", "ours"): 0.3,
}
GOAL_STEPS, GOAL_GROWTH = 80, 1.5


def split_of(stats: Stats, first_call_s: float) -> dict[str, Any]:
    """Seconds of a first call: `dynamo` (with the call itself), `aot`, `ours` with g++, and `g++` alone.

    by_step: our part, of all graphs
    """
    capture, *graphs = stats.ledgers
    by_step = {step: s for step, s in capture.timings.items() if step != AOT_AND_COMPILE}
    before_aot = sum(by_step.values())
    for ledger in graphs:
        for step, seconds in ledger.timings.items():
            by_step[step] = by_step.get(step, 0.0) + seconds
    ours = sum(by_step.values())
    aot_and_compile = capture.timings.get(AOT_AND_COMPILE, 0.0)
    return {
        "dynamo": first_call_s - aot_and_compile - before_aot,
        "aot": aot_and_compile - (ours - before_aot),
        "ours": ours,
        "g++": by_step.get(BUILD, 0.0),
        "by_step": dict(sorted(by_step.items(), key=lambda item: -item[1])),
    }


def measure_first_call(steps: int, *, hidden: int = 256, is_training: bool = False) -> dict[str, Any]:
    """The parts of the first call of a GateLSTM in this process, batch 1; in training with its backward."""
    torch.manual_seed(0)
    job = Job.of(GateLSTM(hidden, steps), is_training=is_training)
    contender = job.contender(wolong_fx.optimize(job.model))
    with torch.set_grad_enabled(is_training):
        start = perf_counter()
        contender.call()
        took = perf_counter() - start
    return {"first_call": took, **split_of(wolong_fx.stats(job.model), took)}


def growth(calls: Sequence[Mapping[str, Any]]) -> float:
    """How many times as long our part of the slowest takes as that of the fastest, with empty caches."""
    ours = [call["ours"] for call in calls if call["cache"] == "cold"]
    return max(ours) / min(ours)


def verdicts(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal that these calls tell something about."""
    found = []
    for (kind, cache, part), limit in LIMITS_S.items():
        for call in calls:
            if (call["kind"], call["cache"], call["steps"]) == (kind, cache, GOAL_STEPS):
                found.append(
                    judge_at_most(f"{kind}, {cache} cache, {part} <= {limit:g} s", call[part], limit)
                )
    for kind in dict.fromkeys(call["kind"] for call in calls):
        of_kind = [call for call in calls if call["kind"] == kind]
        if len({call["steps"] for call in of_kind}) > 1:
            goal = f"{kind}, our part within {GOAL_GROWTH:g}x over all numbers of steps"
            found.append(judge_at_most(goal, growth(of_kind), GOAL_GROWTH))
    return found
