"""The benchmark table: every row against eager, Inductor, libraries, a program by hand, and its goals.

    python benchmarks/table.py                                  # all rows, about half an hour
    python benchmarks/table.py --only dlrm-26-b1 --only gru-3x40-b1-h128
    python benchmarks/table.py --quick --only lstm80-b1-h256    # short samples, caches of other runs
    python benchmarks/table.py --write benchmarks/results/table # one JSON file a row, kept

Contenders of a row take turns in one process; medians and quartiles of milliseconds a call, ratios paired
round by round. A contender that is not installed or cannot do the row is listed as missing, with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wolong_fx.bench.contenders import makers
from wolong_fx.bench.job import ContenderMissing
from wolong_fx.bench.race import QUICK, Effort, measure_row
from wolong_fx.bench.screen import row_lines
from wolong_fx.bench.table import ROWS
from wolong_fx.report.measure import machine
from wolong_fx.report.screen import show_status

SOURCES = Path(__file__).parent / "hand"


def main() -> None:
    """The command."""
    chosen = _parser().parse_args()
    effort = QUICK if chosen.quick else Effort(rounds=chosen.rounds, keeps_caches=chosen.keep_caches)
    measured = []
    for row in ROWS:
        if not chosen.only or row.name in chosen.only:
            result = {"machine": machine()} | measure_row(row, _makers(chosen.without), effort, show_status)
            show_status("")
            measured.append(result)
            _report(result, chosen)
    if chosen.json:
        print(json.dumps(measured, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="ROW", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out, e.g. inductor")
    parser.add_argument("--quick", action="store_true", help="short samples, and --keep-caches")
    parser.add_argument(
        "--keep-caches", action="store_true", help="compilers may use what they built in another run"
    )
    parser.add_argument("--rounds", type=int, default=40, help="samples of each contender (40)")
    parser.add_argument("--json", action="store_true", help="print one JSON array, no table")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep a JSON file a row there")
    return parser


def _makers(without: list[str]) -> Mapping[str, Any]:
    def left_out(job: object) -> Any:
        raise ContenderMissing("left out by --without")

    return {name: left_out if name in without else maker for name, maker in makers(SOURCES).items()}


def _report(result: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    if chosen.write:
        chosen.write.mkdir(parents=True, exist_ok=True)
        (chosen.write / f"{result['row']}.json").write_text(json.dumps(result, indent=2) + "\n")
    if not chosen.json:
        print("\n".join(row_lines(result)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
