"""How long the first call of a per-gate LSTM takes, by number of steps: torch's tracing, and our part.

    python benchmarks/compile_time.py                              # 20, 80, 320, 1,000 steps; minutes
    python benchmarks/compile_time.py --steps 20 80 --kind forward --json

Every first call has a process of its own: once with an empty kernel cache, once with what that one built.
`ours` is everything after tracing, g++ included, which stands beside it too. Goals are of 80 steps, and of
the growth of our part from the fewest steps to the most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wolong_fx.bench.compile_time import growth, measure_first_call, verdicts
from wolong_fx.bench.screen import verdict_line
from wolong_fx.report.measure import add_output_arguments, machine, publish
from wolong_fx.report.screen import show_status

KINDS = ("forward", "training")


def main() -> None:
    """The command; with --one it is the process that makes one first call."""
    chosen = _parser().parse_args()
    if chosen.one:
        (steps,), (kind,) = chosen.steps, chosen.kind
        print(json.dumps(measure_first_call(steps, is_training=kind == "training")))
    else:
        publish(measure(chosen), chosen, _screen)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """All first calls, cold and warm, and the goals."""
    calls = [call for kind in chosen.kind for call in _first_calls(kind, chosen.steps)]
    show_status("")
    return {
        "benchmark": "compile_time",
        "machine": machine(),
        "unit": "s",
        "first_calls": calls,
        "growth": {kind: growth([c for c in calls if c["kind"] == kind]) for kind in chosen.kind},
        "verdicts": verdicts(calls),
    }


def _first_calls(kind: str, all_steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    for steps in all_steps:
        with tempfile.TemporaryDirectory() as directory:
            for cache in ("cold", "warm"):
                show_status(f"{kind}, {steps} steps, {cache} cache")
                yield {"kind": kind, "steps": steps, "cache": cache} | _in_own_process(kind, steps, directory)


def _in_own_process(kind: str, steps: int, cache: str) -> dict[str, Any]:
    command = [sys.executable, "-P", __file__, "--one", "--steps", str(steps), "--kind", kind]
    environment = os.environ | {"WOLONG_CACHE_DIR": cache}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 80, 320, 1000])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", action="store_true", help="make one first call and print its parts")
    add_output_arguments(parser)
    return parser


def _screen(results: Mapping[str, Any]) -> str:
    columns = ("first_call", "dynamo", "aot", "ours", "g++")
    lines = [f"{'seconds':26}" + "".join(f"{column:>11}" for column in columns)]
    for call in results["first_calls"]:
        name = f"{call['kind']}, {call['steps']} steps, {call['cache']}"
        lines.append(f"{name:26}" + "".join(f"{call[column]:11.2f}" for column in columns))
    lines += [f"our part grows by {ratio:.2f}x, {kind}" for kind, ratio in results["growth"].items()]
    return "\n".join([*lines, *map(verdict_line, results["verdicts"])])


if __name__ == "__main__":
    main()
