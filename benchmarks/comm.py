"""All-reduce over the backend `wolong` against gloo and the memory limit, by size.

    python benchmarks/comm.py
    python benchmarks/comm.py --ranks 4 --samples 30 --json

Ranks are processes pinned to processors; all contenders take turns in one run. "In the arena" is where DDP's
gradients lie; tensors in memory of their own are copied on the way. The memory limit is a pass over as many
bytes by all ranks at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from wolong_fx.bench.collectives import measure_all_reduce
from wolong_fx.bench.screen import verdict_line
from wolong_fx.report.measure import add_output_arguments, machine, publish
from wolong_fx.report.screen import show_status


def main() -> None:
    """The command."""
    chosen = _parser().parse_args()
    rows = [row for ranks in chosen.ranks for row in measure_all_reduce(ranks, chosen.samples, show_status)]
    show_status("")
    publish({"benchmark": "comm", "machine": machine(), "rows": rows}, chosen, _screen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N", help="group sizes (2 4)")
    parser.add_argument("--samples", type=int, default=100, help="of each contender (100)")
    add_output_arguments(parser)
    return parser


def _screen(results: Mapping[str, Any]) -> str:
    lines = []
    for row in results["rows"]:
        lines.append(f"{row['bytes']:>10} bytes, {row['ranks']} ranks")
        for name, spread in row["ms"].items():
            quartiles = f"({spread['low'] * 1e3:.1f} to {spread['high'] * 1e3:.1f})"
            lines.append(f"  {name:20} {spread['median'] * 1e3:10.1f} us {quartiles}")
        lines += map(verdict_line, row["verdicts"])
    return "\n".join(lines)


if __name__ == "__main__":
    main()
