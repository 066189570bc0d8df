"""The tests that need a GPU, those marked `gpu`: how many pass, and what those that fail say.

python benchmarks/gpu/gpu_tests.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wolong_fx.bench.gpu.question import Question, Rows, ask
from wolong_fx.bench.gpu.row import Setting
from wolong_fx.bench.verdict import judge_at_least

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/gpu", "tests/runtime/gpu", "tests/codegen/triton")
"""Where such tests are; others import what a machine that is lent need not have."""

TIER, DRY = (*FOLDERS, "-m", "gpu", "--must-have", "gpu"), ("tests/bench/test_gpu_verdicts.py",)
SHOWN = 300  # characters of what a failing test says


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """All of them, one after another."""
    setting.line.doing("collecting")
    setting.line.wait_for_turn()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tier = DRY if setting.dry else TIER
        command = [sys.executable, "-P", "-m", "pytest", "-v", f"--junitxml={report}", *tier]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                print(line, end="")
                setting.line.doing(line.strip()[:100])
        return _counts(report)


def _counts(report: Path) -> dict[str, Any]:
    cases = [*ElementTree.parse(report).iter("testcase")]
    failed = {
        f"{case.get('classname')}.{case.get('name')}": said for case in cases for said in _failures(case)
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "tests": len(cases),
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failures": failed,
    }


def _failures(case: ElementTree.Element) -> Iterator[str]:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            yield (found.get("message") or "")[:SHOWN]
            return


def verdicts(rows: Rows, folder: Path) -> list[dict[str, Any]]:
    """All pass, none is skipped."""
    goal = "share of the gpu tests that pass >= 1"
    return [judge_at_least(goal, row["passed"] / max(1, row["tests"]), 1.0) for row in rows.values()]


def lines(row: Mapping[str, Any]) -> list[str]:
    """Counts, and the failures."""
    counts = f"{row['passed']} of {row['tests']} tests pass, {row['skipped']} skipped"
    return ["", counts, *(f"  FAILED {name}: {said}" for name, said in row["failures"].items())]


QUESTION = Question("gpu_tests", "tests that need a GPU", lambda dry: ("gpu",), measure, lines, verdicts)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
