"""Where the seconds of a first call went: into tracing, which is torch's, and into our own steps."""

from __future__ import annotations

from typing import Any

from wolong_fx import Stats
from wolong_fx.capture.record import AOT_AND_COMPILE

BUILD = "build"  # the step that calls the C++ compiler


def split_of(stats: Stats, first_call_s: float) -> dict[str, Any]:
    """Seconds of a first call: `dynamo` (with the call itself), `aot`, `ours` without and `g++` alone.

    by_step: our part, of all graphs
    """
    capture, *graphs = stats.ledgers
    by_step = {step: s for step, s in capture.timings.items() if step != AOT_AND_COMPILE}
    for ledger in graphs:
        for step, seconds in ledger.timings.items():
            by_step[step] = by_step.get(step, 0.0) + seconds
    within_aot = sum(s for ledger in graphs for s in ledger.timings.values())
    aot_and_compile = capture.timings.get(AOT_AND_COMPILE, 0.0)
    before_aot = sum(by_step.values()) - within_aot
    return {
        "dynamo": first_call_s - aot_and_compile - before_aot,
        "aot": aot_and_compile - within_aot,
        "ours": sum(by_step.values()) - by_step.get(BUILD, 0.0),
        "g++": by_step.get(BUILD, 0.0),
        "by_step": dict(sorted(by_step.items(), key=lambda item: -item[1])),
    }
