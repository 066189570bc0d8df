"""A kernel among busy processes: its team of threads against its own one-thread plan.

    python benchmarks/oversubscribed.py
    python benchmarks/oversubscribed.py --busy 8 --batch 16 --json

A barrier waits for the slowest thread, and a thread whose processor is taken waits for a time slice: without
a guard a team would be many times slower than one thread. Goal: never slower than 1.2x the one-thread plan,
with twice as many busy processes as processors. Both plans take turns, on a quiet machine and on a busy one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from wolong_fx.bench.contenders import make_ours
from wolong_fx.bench.job import Job
from wolong_fx.bench.race import Effort, race
from wolong_fx.bench.screen import verdict_line
from wolong_fx.bench.verdict import judge_at_most
from wolong_fx.report.measure import Contest, add_output_arguments, machine, publish
from wolong_fx.report.screen import show_status
from wolong_fx.testing.models import GateLSTM

TEAM, ALONE = "team", "one thread"
AT_MOST = 1.2


def main() -> None:
    """The command."""
    chosen = _parser().parse_args()
    publish(measure(chosen), chosen, _screen)


@torch.no_grad()
def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a call of both plans, without and with the busy processes."""
    torch.manual_seed(0)
    job = Job.of(GateLSTM(chosen.hidden), chosen.batch)
    plans = {TEAM: make_ours(job), ALONE: make_ours(job, threads=1)}
    effort = Effort(rounds=chosen.rounds, sample_ms=chosen.sample_ms, rest_ms=0.0)
    show_status("quiet")
    quiet = race(plans, effort, show_status)
    with busy_processes(chosen.busy):
        busy = race(plans, effort, show_status)
    show_status("")
    ratio = total(busy, TEAM) / total(busy, ALONE)
    return {
        "benchmark": "oversubscribed",
        "machine": machine(),
        "batch": chosen.batch,
        "hidden": chosen.hidden,
        "busy_processes": chosen.busy,
        "quiet_ms": quiet.as_json(),
        "busy_ms": busy.as_json(),
        "team_over_one_thread": {"quiet": total(quiet, TEAM) / total(quiet, ALONE), "busy": ratio},
        "verdicts": [judge_at_most(f"team, busy machine <= {AT_MOST:g}x one thread", ratio, AT_MOST)],
    }


def total(contest: Contest, name: str) -> float:
    """The mean of all samples: the rare slow calls are what this is about, and a median would hide them."""
    samples = contest.samples[name]
    return sum(samples) / len(samples)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Inside, so many processes compute without end, on the processors that this one may use."""
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    twice = 2 * len(os.sched_getaffinity(0))
    parser.add_argument("--busy", type=int, default=twice, metavar="N", help=f"busy processes ({twice})")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40, help="samples of each plan (40)")
    parser.add_argument("--sample-ms", type=float, default=100.0, help="length of a sample (100)")
    add_output_arguments(parser)
    return parser


def _screen(results: Mapping[str, Any]) -> str:
    lines = [
        f"LSTM-80, batch {results['batch']}, hidden {results['hidden']}: "
        f"{results['busy_processes']} busy processes, {results['machine']['processors']} processors"
    ]
    for state in ("quiet", "busy"):
        for name, spread in results[f"{state}_ms"].items():
            quartiles = f"({spread['low']:.3f} to {spread['high']:.3f})"
            lines.append(f"  {state:6}{name:11} {spread['median']:8.3f} ms {quartiles}")
        ratio = results["team_over_one_thread"][state]
        lines.append(f"  {state:6}a call by the team takes {ratio:.2f}x one by one thread, on average")
    return "\n".join([*lines, *map(verdict_line, results["verdicts"])])


if __name__ == "__main__":
    main()
