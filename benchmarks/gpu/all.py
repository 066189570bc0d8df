"""Every GPU figure, question by question in order of importance: what `make bench-gpu` runs.

    python benchmarks/gpu/all.py
    python benchmarks/gpu/all.py --quick --budget-s 540        # within ten minutes of a lent machine
    python benchmarks/gpu/all.py --missing --budget-s 540      # ... and what is missing in the next ten
    python benchmarks/gpu/all.py --dry                         # all of it without a GPU, small

A question writes its own file after every row, so that what a run had when it was ended is kept. It may take
its share of what is left of the budget; what it does not need goes to those behind it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from wolong_fx.bench.gpu.device import find_device
from wolong_fx.bench.gpu.question import DRY_RESULTS, INCOMPLETE, NO_GPU, RESULTS
from wolong_fx.bench.screen import verdict_line
from wolong_fx.errors import NoGpuHere

SHARES = {
    "barrier": 0.2,
    "lstm80": 0.5,
    "occupancy": 0.3,
    "launch_bound": 0.6,
    "train_step": 0.6,
    "gpu_tests": 1.0,
}
"""The questions in order, and the part of what is left of the budget that each may take."""

PASSED_ON = ("quick", "missing", "dry")


def main() -> int:
    """The command; its exit status."""
    chosen, more = _parser().parse_known_args()
    folder = chosen.write or (DRY_RESULTS if chosen.dry else RESULTS)
    try:
        find_device(dry=chosen.dry)
    except NoGpuHere as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return NO_GPU
    end = monotonic() + chosen.budget_s
    flags = [f"--{flag}" for flag in PASSED_ON if getattr(chosen, flag)]
    statuses = []
    for name in chosen.question or SHARES:
        print(f"\n== {name}", flush=True)
        budget = max(1.0, (end - monotonic()) * SHARES[name])
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, "-P", str(script), f"--budget-s={budget:g}", f"--write={folder}"]
        statuses.append(subprocess.run([*command, *flags, *more]).returncode)
    print("\n".join(["", "== goals", *_summary(folder, chosen.question or SHARES)]))
    return INCOMPLETE if any(statuses) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", action="append", choices=SHARES, help="one of them; may be repeated")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="seconds for all questions")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"where results are kept ({RESULTS})")
    for flag in PASSED_ON:
        parser.add_argument(f"--{flag}", action="store_true", help="as each question has it")
    return parser


def _summary(folder: Path, questions: Sequence[str] | dict[str, float]) -> Iterator[str]:
    for name in questions:
        file = folder / f"{name}.json"
        if file.exists():
            yield f"{name}:"
            yield from map(verdict_line, _verdicts(json.loads(file.read_text())))


def _verdicts(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in found["rows"]:
        for verdict in row.get("verdicts", ()):
            yield verdict | {"goal": f"{row['row']}: {verdict['goal']}"}
    yield from found["verdicts"]


if __name__ == "__main__":
    sys.exit(main())
