"""Rows in processes of their own: one that fails, hangs or is slow costs no other its figures."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from wolong_fx.bench.gpu.apart import Apart, Limits

CHILD = """
import json, os, signal, sys, time
row, without = sys.argv[1], sys.argv[2:]
def say(**message):
    print(json.dumps(message), flush=True)
def making(name):
    say(doing=f"making {name}", contender=name)
    return name not in without
making("eager")
made = ["eager"]
if making("ours"):
    if row == "faults": os.kill(os.getpid(), signal.SIGSEGV)
    if row == "hangs": time.sleep(60)
    if row == "breaks": raise SystemExit("it broke")
    made.append("ours")
say(ready=True)
sys.stdin.readline()
if row == "faults late" and "ours" in made: os.kill(os.getpid(), signal.SIGKILL)
if row == "always faults": os.kill(os.getpid(), signal.SIGKILL)
began = time.monotonic()
time.sleep(0.3)
say(result={"made": made, "began": began, "ended": time.monotonic()})
"""


@pytest.fixture
def measure(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(CHILD)

    def run(*rows, **limits):
        apart = Apart(
            command=lambda row, without: [sys.executable, "-S", str(child), row, *without],
            limits=Limits(**limits),
            logs=tmp_path / "logs",
            blame=("ours",),
        )
        return dict(apart.measure(rows))

    return run


def test_every_row_gives_its_result(measure):
    found = measure("a", "b")
    assert [*found] == ["a", "b"]
    assert all(row["made"] == ["eager", "ours"] for row in found.values())


@pytest.mark.parametrize(
    ("row", "because"),
    [
        ("faults", "signal SIGSEGV while making ours"),
        ("breaks", "status 1 while making ours: it broke"),
        ("faults late", "signal SIGKILL while taking turns"),
    ],
)
def test_a_contender_that_takes_its_process_along_is_missing_and_the_others_are_there(measure, row, because):
    found = measure(row)[row]
    assert found["made"] == ["eager"]
    assert because in found["missing"]["ours"]


def test_a_contender_that_never_ends_is_stopped(measure):
    found = measure("hangs", contender=1.0)["hangs"]
    assert found["made"] == ["eager"]
    assert "stopped after 1 s of making ours" in found["missing"]["ours"]


def test_a_row_that_fails_without_suspects_says_why_and_the_next_is_measured(measure):
    found = measure("always faults", "a")
    assert "SIGKILL" in found["always faults"]["failed"]
    assert found["a"]["made"] == ["eager", "ours"]


def test_rows_that_get_ready_together_are_timed_one_after_another(measure):
    found = sorted(measure("a", "b", "c", ready=3).values(), key=lambda row: row["began"])
    assert all(a["ended"] <= b["began"] for a, b in pairwise(found))


def test_rows_behind_the_budget_are_left_out_at_once(measure):
    found = measure("hangs", "a", budget=1.5)
    assert "budget of 1.5 s" in found["hangs"]["failed"]
    assert "budget of 1.5 s" in found["a"]["failed"]


def test_what_a_process_printed_is_kept(measure, tmp_path):
    measure("breaks")
    assert "it broke" in (tmp_path / "logs" / "breaks.log").read_text()


def test_a_row_that_is_left_early_leaves_no_process_behind(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, time\nopen(os.environ['PID'], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    pid = tmp_path / "pid"
    apart = Apart(
        command=lambda row, without: ["env", f"PID={pid}", sys.executable, "-S", str(child)],
        limits=Limits(contender=1.0),
        logs=tmp_path,
    )
    assert "failed" in dict(apart.measure(["a"]))["a"]
    assert not Path(f"/proc/{json.loads(pid.read_text())}").exists()
