"""The benchmarks as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wolong_fx.bench.table import ROWS

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", *command], cwd=ROOT, capture_output=True, text=True)


def test_the_table_names_its_rows_and_refuses_others():
    shown = run("benchmarks/table.py", "--help")
    assert shown.returncode == 0
    assert all(row.name in "".join(shown.stdout.split()) for row in ROWS)
    assert run("benchmarks/table.py", "--only", "lstm81").returncode == 2


@pytest.mark.cpu
@pytest.mark.two_cores
@pytest.mark.slow
def test_among_busy_processes_a_team_is_not_slower_than_its_one_thread_plan_times_a_fifth():
    done = run("benchmarks/oversubscribed.py", "--rounds", "15", "--sample-ms", "50", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["busy_processes"] >= 4
    (verdict,) = results["verdicts"]
    assert verdict["is_met"], results["team_over_one_thread"]
